"""How long a rank's step of EPLB has taken at most, in a file beside what the rank holds."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["timed"]


def timed(folder: str, rank: int, step: Callable[[], Any]) -> Any:
    """Call a step, and write its seconds where no step since the file was removed took as many."""
    begin = time.perf_counter()
    answer = step()
    seconds = time.perf_counter() - begin
    path = Path(folder, f"{rank}.longest")
    if not path.exists() or seconds > float(path.read_text()):
        path.write_text(str(seconds))
    return answer
