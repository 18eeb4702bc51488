"""What is shown while something is being done."""

import io
import threading

import pytest
from rich.console import Console

from eplb.cli.report import _Steps
from eplb.cli.terminal import progress_bar, waiting


@pytest.mark.parametrize("limited", [False, True])
def test_what_is_done_is_shown_unless_no_thread_can_be_started(
    limited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a limit of processes, as a container has it."""

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    if limited:
        monkeypatch.setattr(threading.Thread, "start", refused)
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True)
    with waiting(console, "planning"):
        pass
    with progress_bar(console, "replaying") as advance:
        advance(1, 2)
    with _Steps(console) as step:
        step("reading", 1, 2)
    for what in ("planning", "replaying", "reading"):
        assert (what in shown.getvalue()) != limited


def test_nothing_is_shown_where_there_is_no_terminal() -> None:
    shown = io.StringIO()
    console = Console(file=shown)
    with waiting(console, "planning"), progress_bar(console, "replaying") as advance:
        advance(1, 2)
    assert not shown.getvalue()
