"""Files written whole or not at all."""

import os
import tempfile
from pathlib import Path

from eplb.errors import FormatError

__all__ = ["write_text"]


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file to the side and rename it, so that no reader sees half of it.

    Raises:
        FormatError: a path that cannot be written.
    """
    target = Path(path)
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            # mkstemp makes files private; this one is to be as any other.
            umask = os.umask(0)
            os.umask(umask)
            Path(name).chmod(0o666 & ~umask)
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise FormatError(f"{target} cannot be written: {error.strerror or error}") from None
