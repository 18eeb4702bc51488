"""Small traces that reports are tested on."""

import numpy as np

import eplb
from eplb import synthetic

__all__ = ["CLUSTER", "HOSTILE", "hostile_trace", "small_trace"]

CLUSTER = eplb.Cluster(num_gpus=8, num_nodes=2, slots_per_gpu=5)

HOSTILE = (
    '<script>document.title="owned"</script>"\'&<img src=x onerror=alert(1)>\x1b[31m\x07{{ 7*7 }}'
)
"""A name that is markup, closes attributes, colours terminals and is a template."""


def small_trace(num_windows: int = 12, num_layers: int = 5) -> eplb.LoadTrace:
    """Windows of gpt-oss-20b, one dense layer first, with times 60 s apart."""
    made = synthetic.trace(
        "gpt-oss-20b",
        num_windows=num_windows,
        tokens_per_window=2048,
        num_dense_layers=1,
        num_layers=num_layers,
    )
    times = np.arange(num_windows, dtype=np.float64) * 60.0
    return eplb.LoadTrace(made.loads, made.names, times, made.top_k, made.model)


def hostile_trace(num_windows: int = 12) -> eplb.LoadTrace:
    """The same from somebody who puts markup into every name."""
    trace = small_trace(num_windows)
    names = [f"{HOSTILE} {window}" for window in range(num_windows)]
    return eplb.LoadTrace(trace.loads, names, trace.times, trace.top_k, HOSTILE)
