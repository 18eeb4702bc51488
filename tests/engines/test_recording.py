"""Recording of what an engine shows: bounded, whole files, and no trouble for the engine."""

import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from eplb import load_trace
from eplb.engines import log, recording
from eplb.engines.recording import Recorder

LOGGER = logging.getLogger("engine")


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_told", set())


def windows(number: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.random.default_rng(0).integers(0, 100, (number, 3, 8)).astype(np.float64)


def recorded(
    folder: Path, loads: np.ndarray[tuple[int, ...], np.dtype[np.float64]], most: int
) -> None:
    recorder = Recorder(folder, most, LOGGER)
    for window in loads:
        recorder.add(window)
        recorder.wait(30.0)


def test_a_folder_is_a_trace(tmp_path: Path) -> None:
    recorded(tmp_path / "made", windows(12), 100)
    trace = load_trace(tmp_path / "made" / "3x8")
    assert np.array_equal(trace.loads, windows(12))
    assert trace.times is not None
    assert (np.diff(trace.times) >= 0).all()


def test_the_oldest_are_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "3x8"
    folder.mkdir()
    kept = folder / "loads-of-mine.npz"
    kept.write_bytes(b"")
    recorded(tmp_path, windows(9), 4)
    recorded(tmp_path, windows(9)[::-1], 4)
    assert kept.exists()
    kept.unlink()
    assert np.array_equal(load_trace(folder).loads, windows(9)[3::-1])
    assert len(list(folder.iterdir())) == 4


def test_what_a_killed_engine_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "3x8"
    folder.mkdir()
    (folder / ".eplb-0123456789abcdef.part").write_bytes(b"half")
    recorded(tmp_path, windows(5), 3)
    assert np.array_equal(load_trace(folder).loads, windows(5)[2:])
    assert len(list(folder.iterdir())) == 3


def test_home_is_where_a_shell_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    recorded(Path("~/loads"), windows(2), 4)
    assert len(load_trace(tmp_path / "home" / "loads" / "3x8")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_models_and_stages_do_not_mix(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 10, LOGGER)
    for shape, rank in (((3, 8), 0), ((1, 8), 0), ((3, 8), 16)):
        recorder.add(np.ones(shape), rank)
        recorder.wait(30.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1x8", "3x8", "3x8-rank16"]


def test_a_folder_that_cannot_be_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    recorded(tmp_path / "file", windows(3), 4)
    assert len(caplog.records) == 1
    assert "the engine goes on" in caplog.text


def test_a_full_disk_is_told_once_and_leaves_no_half_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    recorded(tmp_path, windows(1), 4)
    with monkeypatch.context() as patched:
        patched.setattr("os.fdopen", full)
        recorded(tmp_path, windows(3), 4)
    assert len(caplog.records) == 1
    assert "No space left on device" in caplog.text
    assert len(list((tmp_path / "3x8").iterdir())) == 1
    recorded(tmp_path, windows(2), 4)
    assert len(load_trace(tmp_path / "3x8")) == 3


def test_a_slow_disk_holds_up_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(Recorder, "_write_one", lambda *_: released.wait(30.0))
    recorder = Recorder(tmp_path, 100, LOGGER)
    for window in windows(recording._WAITING + 8):
        recorder.add(window)
    released.set()
    recorder.wait(30.0)
    assert len(caplog.records) == 1
    assert "some are not recorded" in caplog.text


def test_what_is_recorded_is_as_it_was_shown(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 100, LOGGER)
    window = np.ones((3, 8))
    recorder.add(window)
    window[:] = 7.0
    recorder.wait(30.0)
    assert load_trace(tmp_path / "3x8").loads.max() == 1.0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is nothing to fork with")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_forked_from_one_do_not_write_over_each_other(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 100, LOGGER)
    for number in range(2):
        child = os.fork()
        if child == 0:
            recorder.add(np.full((3, 8), float(number)))
            recorder.wait(30.0)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert len(load_trace(tmp_path / "3x8")) == 2
