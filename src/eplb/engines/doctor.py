"""Whether a host is fit to plan in an engine, and what hosts have that differs.

Plans are the same on every host, so the digest of one fixed plan tells whether a host computes as
the others do. What ranks compare when they start (`ranks.py`) must be alike on all hosts too.
"""

import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eplb.checks import in_one_line
from eplb.engines.ranks import agreed_on
from eplb.engines.settings import is_on, settings_from, unknown_variables
from eplb.errors import EplbError, FormatError

Facts = dict[str, Any]
"""What is true of a host: plain values, by name, one or two levels deep."""

_PACKAGES = ("eplb", "numba", "numpy", "torch", "vllm", "sglang")
_MUST = ("ranks agree on", "plan")
"""Where hosts must not differ. Elsewhere a difference changes no plan."""


def examine() -> Facts:
    """What is true of this host, in this process's environment.

    Kernels that are not compiled yet are compiled, which takes up to a minute.
    """
    from eplb.cluster import Cluster
    from eplb.planning.plan import plan

    variables = {name: text for name, text in os.environ.items() if name.startswith("EPLB_")}
    try:
        switched_on = "yes" if is_on(os.environ) else "no"
        alike = agreed_on(settings_from(os.environ))
    except EplbError as error:
        switched_on, alike = str(error), {}
    loads = np.random.default_rng(0).lognormal(5.0, 1.0, (2, 4, 32)).round()
    cache = _cache()
    made = plan(loads, Cluster(8, 2, 5), effort="fast").placement
    digest = hashlib.blake2b(made.phy2log.tobytes(), digest_size=8).hexdigest()
    return {
        "host": socket.gethostname(),
        "versions": {
            "python": platform.python_version(),
            **{name: version for name in _PACKAGES if (version := _version(name))},
        },
        "variables": dict(sorted(variables.items())),
        "unknown variables": unknown_variables(os.environ),
        "switched on": switched_on,
        "ranks agree on": alike,
        "cache": cache,
        "engines": {"vllm": _engine("vllm"), "sglang": _engine("sglang")},
        "plan": digest,
    }


def problems(facts: Mapping[str, Any]) -> list[str]:
    """What is wrong on a host, in a sentence each."""
    found = []
    if facts.get("switched on") not in {"yes", "no"}:
        found.append(f"{facts.get('switched on')}: the engine's own planner stays")
    if facts.get("switched on") == "no":
        found.append("EPLB_POLICY is not eplb: the engine's own planner stays")
    if unknown := facts.get("unknown variables"):
        found.append(f"unknown variables are ignored: {', '.join(unknown)}")
    cache = facts.get("cache", {})
    if not cache.get("writable") and cache.get("compiled") != "before":
        found.append(
            f"compiled kernels cannot be kept in {cache.get('folder')}: each process compiles them "
            "again; set NUMBA_CACHE_DIR to a folder that can be written"
        )
    engines = facts.get("engines", {})
    found += [f"{name}: {said}" for name, said in engines.items() if said not in _FINE]
    if not any(said == _KNOWN for said in engines.values()):
        found.append("there is no engine that the plug-in knows in this Python")
    return found


def differences(hosts: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
    """What hosts have that differs: a line each, and whether it must not differ."""
    flat = [dict(_flat(facts)) for facts in hosts]
    names = sorted({name for facts in flat for name in facts} - {"host"})
    found = []
    for name in names:
        having: dict[str, list[str]] = {}
        for facts in flat:
            having.setdefault(facts.get(name, "nothing"), []).append(facts.get("host", "?"))
        if len(having) > 1:
            parts = [f"{value} on {', '.join(on)}" for value, on in having.items()]
            found.append((f"{name}: {'; '.join(parts)}", name.startswith(_MUST)))
    return sorted(found, key=lambda each: not each[1])


def read_facts(path: Path) -> list[Facts]:
    """What `eplb doctor --json` printed on hosts: one or several, one after the other.

    Raises:
        FormatError: a file that cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: cannot be read ({in_one_line(error)})") from None
    hosts = []
    decoder = json.JSONDecoder()
    at = 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        try:
            facts, at = decoder.raw_decode(text, at)
        except ValueError:
            facts = None
        if not isinstance(facts, dict) or not {"host", "plan", "versions"} <= set(facts):
            raise FormatError(f"{path}: is not what `eplb doctor --json` prints")
        hosts.append({name: value for name, value in facts.items() if name != "version"})
    if not hosts:
        raise FormatError(f"{path}: is empty; give what `eplb doctor --json` prints")
    return hosts


_KNOWN = "its interface is known"
_NONE = "not installed"
_FINE = {_KNOWN, _NONE}


def _cache() -> dict[str, Any]:
    """Where compiled kernels are kept, whether they can be, and whether they were there before."""
    from eplb.planning.plan import warmup
    from eplb.solver.jit import filling
    from eplb.solver.layers import _plan_layers

    folder = getattr(getattr(_plan_layers, "stats", None), "cache_path", None)
    with filling() as empty:
        if empty:
            warmup()
    writable = folder is not None and os.access(folder, os.W_OK)
    kept = writable or (folder is not None and any(Path(folder).glob("*.nbc")))
    return {
        "folder": folder or "no folder",
        "writable": writable,
        "compiled": "now" if empty else "before" if kept else "in each process",
    }


def _engine(name: str) -> str:
    """Whether an engine is there, and whether the plug-in fits it."""
    if _version(name) is None:
        return _NONE
    try:
        return str(importlib.import_module(f"eplb.engines.{name}").difference() or _KNOWN)
    except Exception as error:
        return in_one_line(error)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _flat(facts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Names and values as words, of one level."""
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from ((f"{name}, {inner}", _words(each)) for inner, each in value.items())
        else:
            yield name, _words(value)


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
