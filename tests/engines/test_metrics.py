"""Metrics as Prometheus scrapes them: over HTTP, from a process that only serves."""

import json
import logging
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded import ROOT

prometheus_client = pytest.importorskip("prometheus_client", reason="the extra metrics")

from eplb import Cluster, Placement  # noqa: E402
from eplb.engines import metrics  # noqa: E402
from eplb.engines.rebalances import Outcome, Rebalances, Seen  # noqa: E402
from eplb.engines.settings import Settings  # noqa: E402

PROCESS = Path(__file__).with_name("metrics_process.py")
DASHBOARD = ROOT / "docs" / "assets" / "grafana.json"
ALERTS = ROOT / "docs" / "assets" / "alerts.yaml"
Series = dict[str, float]


@pytest.fixture(scope="module")
def tell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Have a first rank do something; what it says of it."""
    folder = tmp_path_factory.mktemp("metrics")
    with subprocess.Popen(
        [sys.executable, str(PROCESS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, metrics.FOLDER: str(folder)},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

        def ask(**given: Any) -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(given) + "\n")
            process.stdin.flush()
            return process.stdout.readline()

        ask.folder = folder  # type: ignore[attr-defined]
        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def scrape(tell: Any) -> Iterator[Callable[[int], Series]]:
    """What one of two API servers that read the same folder answers."""
    from prometheus_client.multiprocess import MultiProcessCollector

    servers = []
    for _ in range(2):
        registry = prometheus_client.CollectorRegistry()
        MultiProcessCollector(registry, path=str(tell.folder))  # type: ignore[no-untyped-call]
        servers.append(prometheus_client.start_http_server(0, "127.0.0.1", registry=registry))

    def read(number: int = 0) -> Series:
        address = f"http://127.0.0.1:{servers[number][0].server_port}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name: float(value) for name, value in found}

    yield read
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def test_series_are_those_of_the_rebalances_on_every_server(
    tell: Callable[..., str], scrape: Callable[..., Series]
) -> None:
    assert scrape()["eplb_ranks_agree"] == 1.0
    tell(steps=7)
    assert scrape()["eplb_steps_since_plan"] == 7.0
    moves, of_layers = json.loads(tell(layers=3, ranks=4))
    found = scrape()
    assert found == scrape(1)
    assert found["eplb_moved_experts_total"] == moves
    assert found["eplb_moved_bytes_total"] == 0.0
    assert found["eplb_planning_seconds_total"] == 0.25
    for name, value in (
        ("min", min(of_layers)),
        ("p50", np.median(of_layers)),
        ("p90", np.quantile(of_layers, 0.9)),
        ("avg", np.mean(of_layers)),
    ):
        assert found[f'eplb_balancedness{{layers="{name}"}}'] == pytest.approx(value)
    assert found["eplb_peak_over_mean"] == pytest.approx(1.0 / min(of_layers))
    assert found["eplb_steps_since_plan"] == 0.0
    assert found["eplb_interval_steps"] == 12.0
    tell(steps=5)
    kept = json.loads(tell(layers=3, ranks=4, decision="kept"))
    assert kept[0] == moves
    later = scrape()
    assert later["eplb_ranks_agree"] == 0.0
    assert later["eplb_steps_since_plan"] == 5.0  # nothing was planned
    assert later["eplb_moved_experts_total"] == moves
    assert later["eplb_last_plan_timestamp_seconds"] == found["eplb_last_plan_timestamp_seconds"]
    decided = {
        name.removeprefix("eplb_rebalances_total"): value
        for name, value in later.items()
        if name.startswith("eplb_rebalances_total") and value
    }
    assert decided == {
        '{decision="moved",reason="first plan"}': 1.0,
        '{decision="kept",reason="ranks disagree"}': 1.0,
    }


def test_there_are_as_many_series_for_any_number_of_ranks_and_layers(
    tell: Callable[..., str], scrape: Callable[..., Series]
) -> None:
    before = scrape()
    tell(layers=9, ranks=16)
    assert scrape().keys() == before.keys()
    assert len(before) == 31
    assert all(name.startswith("eplb_") for name in before)


def test_the_role_of_an_engine_is_a_label_of_every_series(tmp_path: Path) -> None:
    from prometheus_client.multiprocess import MultiProcessCollector

    done = subprocess.run(
        [sys.executable, str(PROCESS), "decode"],
        input=json.dumps({"layers": 2, "ranks": 4, "steps": 3}),
        capture_output=True,
        text=True,
        env={**os.environ, metrics.FOLDER: str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    collector = MultiProcessCollector(  # type: ignore[no-untyped-call]
        prometheus_client.CollectorRegistry(), path=str(tmp_path)
    )
    found = collector.collect()  # type: ignore[no-untyped-call]
    samples = [sample for series in found for sample in series.samples]
    assert {"eplb_moved_experts_total", "eplb_peak_over_mean"} < {each.name for each in samples}
    assert {sample.labels["role"] for sample in samples} == {"decode"}
    assert {sample.labels.get("layers") for sample in samples} == {None, *metrics._STATISTICS}


def test_queries_of_dashboard_and_alerts_name_series_that_there_are(
    tell: Callable[..., str], scrape: Callable[..., Series]
) -> None:
    known = {name.split("{")[0] for name in scrape()}
    board = json.loads(DASHBOARD.read_text())
    of_board = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    of_alerts = re.findall(r"expr: (.*)", ALERTS.read_text())
    assert len(of_alerts) == 2
    asked = {name for query in (*of_board, *of_alerts) for name in re.findall(r"eplb_\w+", query)}
    assert asked <= known
    assert known - asked <= {"eplb_balancedness_before"}
    labels = {pair for query in of_board for pair in re.findall(r'(\w+)="(\w+)"', query)}
    assert all(any(f'{name}="{value}"' in each for each in scrape()) for name, value in labels)


def test_there_are_none_where_no_server_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(metrics.FOLDER, raising=False)
    rebalances = Rebalances(logging.getLogger("an engine"), Settings(), "its own")
    counted = metrics.Counted(rebalances)
    counted.begin(logging.getLogger("an engine"))
    counted.step(12)
    assert not rebalances.observers


def test_seconds_of_moving_go_from_an_answer_until_it_is_in_force(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(metrics.FOLDER, raising=False)
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    file = tmp_path / "eplb.prom"
    rebalances = Rebalances(logging.getLogger("an engine"), Settings(), "its own")
    counted = metrics.Counted(rebalances, None, file)
    counted.begin(logging.getLogger("an engine"))
    cluster = Cluster(4, 1, 5)
    running = Placement.contiguous(2, 16, cluster)
    other = Placement(np.flip(running.phy2log, axis=1).copy(), 16, cluster)

    def answer(placement: Placement) -> None:
        seen = Seen(np.ones((1, 2, 16)), 1, 16, cluster, running)
        rebalances.tell("a model", seen, Outcome("planned", placement.phy2log, 0.5, True))

    def seconds() -> float:
        counted._write()
        (line,) = re.findall(r"^eplb_moving_seconds_total (\S+)$", file.read_text(), re.M)
        return float(line)

    answer(other)
    now += 2.0
    counted.in_force()
    assert seconds() == 2.0
    now += 4.0
    counted.in_force()
    answer(running)  # moves nothing
    now += 8.0
    counted.in_force()
    assert seconds() == 2.0
    answer(other)
    now += 16.0
    answer(other)  # of a second model, half a second after the first one was moved
    assert seconds() == 17.5
    now += 32.0
    counted.in_force()
    assert seconds() == 49.5


def test_a_client_that_fails_costs_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(metrics.FOLDER, str(tmp_path))
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    counted = metrics.Counted(Rebalances(logging.getLogger("one"), Settings(), "its own"))
    counted.begin(logging.getLogger("one"))
    counted.step(12)
    assert caplog.text.count("there are no metrics of eplb") == 1


def test_a_file_has_the_same_series(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(metrics.FOLDER, raising=False)
    monkeypatch.setattr(metrics, "_SECONDS", 0.0)
    file = tmp_path / "eplb.prom"
    logger = logging.getLogger("an engine")
    counted = metrics.Counted(Rebalances(logger, Settings(), "its own"), "decode", file)
    counted.begin(logger)
    for _ in range(3):
        counted.step(12)
    lines = file.read_text().splitlines()
    assert 'eplb_steps_since_plan{role="decode"} 3.0' in lines
    assert sum('role="decode"' in line for line in lines) == 31
    assert [each.name for each in tmp_path.iterdir()] == [file.name]
    file.unlink()
    tmp_path.rmdir()
    for _ in range(3):
        counted.step(12)
    assert caplog.text.count("the file of metrics stays as it is, and serving goes on") == 1


def test_a_folder_that_the_engine_names_after_the_client_was_imported_is_written(
    tmp_path: Path,
) -> None:
    """As vLLM does, in whose forks the client has been imported."""
    code = (
        "import os, prometheus_client, sys\n"
        f"os.environ['{metrics.FOLDER}'] = sys.argv[1]\n"
        "from eplb.engines.metrics import Metrics\n"
        "Metrics().step(12)\n"
        "registry = prometheus_client.CollectorRegistry()\n"
        "from prometheus_client.multiprocess import MultiProcessCollector\n"
        "MultiProcessCollector(registry)\n"
        "print(prometheus_client.generate_latest(registry).decode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={name: value for name, value in os.environ.items() if name != metrics.FOLDER},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "eplb_steps_since_plan 1.0" in done.stdout.splitlines()


def test_a_folder_that_is_not_there_costs_a_line(tmp_path: Path) -> None:
    """In a process of its own: the client looks at the variable when it is imported."""
    code = (
        "import logging; logging.basicConfig(); logger = logging.getLogger('an engine')\n"
        "from eplb.engines.metrics import Counted\n"
        "from eplb.engines.rebalances import Rebalances\n"
        "from eplb.engines.settings import Settings\n"
        "counted = Counted(Rebalances(logger, Settings(), 'its own'))\n"
        "counted.begin(logger); counted.begin(logger); counted.step(12)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, metrics.FOLDER: str(tmp_path / "missing")},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    (line,) = done.stderr.splitlines()
    assert "there are no metrics of eplb" in line
