"""What an engine shows now: the last windows that it recorded, or the metrics that it serves."""

import http.client
import re
import urllib.request
from pathlib import Path

import numpy as np

from eplb.checks import in_one_line
from eplb.engines.recording import is_recorded
from eplb.errors import FormatError
from eplb.formats import load_trace
from eplb.loads import LoadTrace

Series = dict[str, float]
"""Values of metrics by their names, labels as Prometheus writes them: `eplb_x{layers="min"}`."""

_SECONDS = 5.0
_MOST_BYTES = 1 << 24
_LINE = re.compile(r"(eplb_[a-z0-9_]+)(\{[^}]*\})? (\S+)")
_ROLE = re.compile(r'role="([A-Za-z0-9_-]*)",?')


def last_windows(folder: Path, most: int) -> LoadTrace:
    """The last windows of a recording, not more of them than asked for, as they were recorded.

    Args:
        folder: that EPLB_RECORD names, or one of the folders within it; other loads are read as
            `eplb.load_trace` reads them.
        most: windows.

    Raises:
        FormatError: no folder of loads.
    """
    try:
        entries = list(folder.iterdir())
        within = [each for each in entries if each.is_dir() and not each.name.startswith(".")]
        recorded = sorted(
            (each.stat().st_mtime_ns, each.name) for each in entries if is_recorded(each.name)
        )
    except FileNotFoundError:
        raise FormatError(f"{folder}: is not there (any more)") from None
    except OSError as error:
        raise FormatError(f"{folder}: cannot be read ({in_one_line(error)})") from None
    if recorded:
        read = [load_trace(folder / name, merge="none") for _, name in recorded[-most:]]
        times = np.array([0.0 if each.times is None else each.times[0] for each in read])
        return LoadTrace(np.concatenate([each.loads for each in read]), times=times)
    if len(within) == 1:
        return last_windows(within[0], most)
    if within:
        names = ", ".join(sorted(each.name for each in within)[:8])
        raise FormatError(f"{folder}: has a folder for each model: give one of {names}")
    trace = load_trace(folder, merge="none")
    return LoadTrace(trace.loads[-most:], trace.names[-most:])


def scrape(url: str) -> dict[str, Series]:
    """The series of this project that a server of metrics has, by the role of their engine: the
    empty text where they have none.

    Raises:
        FormatError: no such server, or one without such series.
    """
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
            text = answer.read(_MOST_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise FormatError(f"{url}: cannot be read ({in_one_line(error)})") from None
    found: dict[str, Series] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is None:
            continue
        name, labels, value = match.groups(default="")
        role = _ROLE.search(labels)
        rest = _ROLE.sub("", labels).replace(",}", "}").removesuffix("{}")
        found.setdefault(role.group(1) if role else "", {})[name + rest] = float(value)
    if not found:
        raise FormatError(f"{url}: has no metrics of eplb; give the address that Prometheus reads")
    return found
