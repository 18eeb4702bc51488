"""What readers of files tell the log, for tests."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

__all__ = ["told"]


@contextmanager
def told(caplog: pytest.LogCaptureFixture, pattern: str) -> Iterator[None]:
    """A block in which all notes, at least one, match a pattern; with "" there must be none."""
    caplog.clear()
    yield
    notes = [record.getMessage() for record in caplog.records if record.name == "eplb.formats"]
    assert bool(notes) == bool(pattern), notes
    assert all(re.search(pattern, note) for note in notes), notes
