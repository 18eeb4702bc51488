"""The JSON note that the project's own files carry: what stands beside loads, names and times."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError
from eplb.loads import LoadTrace

_LONGEST_NAME = 10_000
"""Characters: Python's csv reads cells of up to 131,072."""


def about_text(trace: LoadTrace, *, names: bool) -> str:
    """One line of JSON in ASCII: what is known beside loads, and the names where asked for."""
    about: dict[str, Any] = {"eplb": 1}
    if trace.top_k is not None:
        about["top_k"] = int(trace.top_k)
    if trace.model is not None:
        about["model"] = trace.model
    if trace.layers is not None:
        about["layers"] = list(trace.layers)
    if not trace.ordered:
        about["ordered"] = False
    if names:
        about["names"] = list(trace.names)
    return json.dumps(about)


def plain_names(trace: LoadTrace) -> list[str]:
    """The names as every table holds them: not too long, without NUL and what is no Unicode."""
    return [
        name[:_LONGEST_NAME].replace("\0", "?").encode("utf-8", "replace").decode("utf-8")
        for name in trace.names
    ]


def trace_about(
    text: str | bytes,
    loads: NDArray[np.float64],
    names: list[str],
    times: NDArray[np.float64] | None,
) -> LoadTrace:
    """The trace of loads with what the note says of them; its names go before those given."""
    try:
        about: Any = json.loads(text) if text else {"eplb": 1}
    except (ValueError, RecursionError):
        raise FormatError("its note about the loads is no JSON") from None
    if not isinstance(about, dict) or type(about.get("eplb")) is not int:
        raise FormatError("its note is not of eplb: expected the key 'eplb'")
    if about["eplb"] != 1:
        raise FormatError(f"is of version {about['eplb']}, known is 1")
    top_k, model, named = about.get("top_k"), about.get("model"), about.get("names", names)
    if not (top_k is None or type(top_k) is int):
        raise FormatError(f"top_k is {str(top_k)[:40]!r}, expected a number of experts")
    if not (model is None or isinstance(model, str)):
        raise FormatError(f"model is no name, but {type(model).__name__}")
    if not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise FormatError("names are no list of names")
    ordered = about.get("ordered", True)
    if not isinstance(ordered, bool):
        raise FormatError(f"ordered is {str(ordered)[:40]!r}, expected true or false")
    layers = about.get("layers")
    return LoadTrace(loads, named, times, top_k, model, layers, ordered=ordered)
