"""Metrics for Prometheus: what the first rank knows of its rebalances, beside the engine's own.

They are written into the folder PROMETHEUS_MULTIPROC_DIR, from which the engine's server reads what
its processes count: planning happens in other processes than the one that is scraped. Or they are
written to a file, which `eplb serve-metrics` or a collector of text files serves. Where neither is
named, there are none. There are as many series for any number of ranks and layers.
"""

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from eplb.engines.log import failure
from eplb.engines.rebalances import DECISIONS, Rebalance, Rebalances
from eplb.files import write_text

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = 5.0
"""From one writing of a file to the next, while the engine steps."""
_STATISTICS = ("min", "p50", "p90", "avg")


class Counted:
    """Metrics of what a plug-in does, from when its first rank begins them; no other rank does. Its
    role is a label of every series, and they are written to a file where one is given.
    """

    def __init__(
        self, rebalances: Rebalances, role: str | None = None, file: Path | None = None
    ) -> None:
        self._rebalances = rebalances
        self._role = role
        self._file = file
        self._written = 0.0
        self._moving_since: float | None = None
        self._logger: logging.Logger | None = None
        self._metrics: Metrics | None = None

    def begin(self, logger: logging.Logger) -> None:
        """Count from now on, where something reads what is counted."""
        if self._metrics is not None or not (os.environ.get(FOLDER) or self._file):
            return
        self._logger = logger
        try:
            self._metrics = Metrics(self._role)
            self._rebalances.observers.append(self._see)
        except Exception as error:
            failure(logger, error, "there are no metrics of eplb")
            return
        self._write()

    def step(self, interval: int) -> None:
        """Count a step of the engine's, which rebalances after so many. Never raises."""
        if self._metrics is None:
            return
        with suppress(OSError, ValueError):  # of a folder that has vanished
            self._metrics.step(interval)
        if self._file is not None and time.monotonic() - self._written >= _SECONDS:
            self._write()

    def in_force(self) -> None:
        """Count the seconds since the last answer, which the engine has now moved to. Never raises.

        Called again, it counts nothing.
        """
        if self._moving_since is not None:
            self._moved(time.monotonic())
            self._write()

    def _see(self, rebalance: Rebalance) -> None:
        if self._metrics is not None:
            # An engine of two models has moved the one before it plans for the other.
            self._moved(time.monotonic() - rebalance.seconds)
            self._metrics.see(rebalance)
            self._moving_since = time.monotonic() if rebalance.moves else None
            self._write()

    def _moved(self, until: float) -> None:
        since, self._moving_since = self._moving_since, None
        if self._metrics is not None and since is not None:
            with suppress(OSError, ValueError):  # of a folder that has vanished
                self._metrics.moved(max(0.0, until - since))

    def _write(self) -> None:
        """Write the file whole, or say once why not."""
        if self._file is None or self._metrics is None or self._logger is None:
            return
        self._written = time.monotonic()
        try:
            write_text(self._file, self._metrics.text())
        except Exception as error:
            failure(self._logger, error, "the file of metrics stays as it is, and serving goes on")


class Metrics:
    """The series of one process, all of them there from the start, in a registry of their own."""

    def __init__(self, role: str | None = None) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge
        from prometheus_client import values as client

        if os.environ.get(FOLDER) and not client.ValueClass._multiprocess:
            # Chosen when it was imported: by a process that this one is a fork of, before its
            # engine named a folder of its own, as vLLM does for several API servers.
            client.ValueClass = client.MultiProcessValue()  # type: ignore[no-untyped-call]

        self.registry = CollectorRegistry()
        names, values = ((), ()) if role is None else (("role",), (role,))

        def series(kind: Any, name: str, text: str, *more: str, **options: Any) -> Any:
            made = kind(f"eplb_{name}", text, (*names, *more), registry=self.registry, **options)
            if more:
                return lambda *of: made.labels(*values, *of)
            return made.labels(*values) if values else made

        def gauge(name: str, text: str, *more: str) -> Any:
            return series(Gauge, name, text, *more, multiprocess_mode="mostrecent")

        def counter(name: str, text: str, *more: str) -> Any:
            return series(Counter, name, text, *more)

        of_layers = gauge(
            "balancedness",
            "Mean over max GPU load that the last plan expects, a statistic over layers",
            "layers",
        )
        self._balancedness = {each: of_layers(each) for each in _STATISTICS}
        self._before = gauge(
            "balancedness_before", "Balancedness of what ran, on the loads of the last plan"
        )
        self._since = gauge(
            "balancedness_since_plan",
            "Balancedness of what ran, on loads that came after it was planned",
        )
        self._expected = gauge(
            "balancedness_expected", "Balancedness that was expected of the loads since the plan"
        )
        self._peak = gauge(
            "peak_over_mean", "Largest GPU load over the mean of its layer that the plan expects"
        )
        self._rebalances = counter(
            "rebalances", "Rebalances by what was decided, and why", "decision", "reason"
        )
        for decision, reasons in DECISIONS.items():
            for reason in reasons:
                self._rebalances(decision, reason)
        self._moves = counter("moved_experts", "Experts that GPUs received")
        self._bytes = counter("moved_bytes", "Bytes of experts that GPUs received")
        self._planning = counter("planning_seconds", "Seconds of planning and agreeing")
        self._moving = counter(
            "moving_seconds", "Seconds from an answer until its last layer is in force"
        )
        self._agree = gauge("ranks_agree", "Whether ranks agreed at the last rebalance")
        self._planned_at = gauge(
            "last_plan_timestamp_seconds", "When this planner last answered, in Unix time"
        )
        self._steps_since = gauge("steps_since_plan", "Steps since this planner last answered")
        self._interval = gauge("interval_steps", "Steps between the engine's rebalances")
        self._steps = 0
        self._agree.set(1)

    def see(self, rebalance: Rebalance) -> None:
        """Count a rebalance."""
        self._rebalances(rebalance.decision, rebalance.reason.name).inc()
        self._moves.inc(rebalance.moves)
        self._bytes.inc(rebalance.bytes or 0)
        self._planning.inc(rebalance.seconds)
        self._agree.set(int(rebalance.agreed))
        for series, value in (
            (self._before, rebalance.before),
            (self._since, rebalance.since),
            (self._expected, rebalance.expected),
            (self._peak, rebalance.peak),
        ):
            if value is not None:
                series.set(value)
        if rebalance.by_layer is not None:
            known = rebalance.by_layer[~np.isnan(rebalance.by_layer)]
            found = (known.min(), np.median(known), np.quantile(known, 0.9), known.mean())
            for name, value in zip(_STATISTICS, found, strict=True):
                self._balancedness[name].set(float(value))
        if rebalance.decision in {"moved", "waited"}:
            self._planned_at.set(time.time())
            self._steps = 0
            self._steps_since.set(0)

    def text(self) -> str:
        """All series as Prometheus reads them, but for the times at which counters were made."""
        from prometheus_client import generate_latest

        lines = generate_latest(self.registry).decode().splitlines(keepends=True)
        return "".join(line for line in lines if "_created" not in line)

    def moved(self, seconds: float) -> None:
        """Count the seconds in which the engine has moved experts."""
        self._moving.inc(seconds)

    def step(self, interval: int) -> None:
        """Count a step of the engine's, which rebalances after so many."""
        self._steps += 1
        self._steps_since.set(self._steps)
        self._interval.set(interval)
