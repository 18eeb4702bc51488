"""Files written whole or not at all, and devices, pipes and links written to as what they are.

A file is written to the side and put in place at the end. Where the system has files without a
name (Linux), it has none until then, so that a killed writer leaves nothing behind. Elsewhere it is
called `.eplb-….part` meanwhile. Its writer holds a lock on it, and whoever next writes into the
same folder removes those that nobody holds.
"""

import errno
import io
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from eplb.errors import FormatError

_TEMPORARY = re.compile(r"\.eplb-[0-9a-f]{16}\.part")
_MOST_LINKS = 40
"""Links that are followed one after another: as many as Linux follows."""


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write, put in place at the end of the block, so that no reader sees half of it.

    Whatever ends the block early, an interrupt too, leaves the file that was there as it was. A
    link stays, and the file that it leads to is replaced; a file keeps its permissions. What is
    no file (a device, a FIFO, /dev/stdout) is written to, at the end of the block too.

    Raises:
        FormatError: a path that cannot be written, or text that no file can hold.
    """
    try:
        target = _follow(Path(path))
        if isinstance(target, int):
            with _stream(os.dup(target)) as file:
                yield file
        elif target.exists() and not target.is_file():
            _check_permission(target)
            with _stream(os.open(target, os.O_WRONLY | getattr(os, "O_NOCTTY", 0))) as file:
                yield file
        else:
            _check_permission(target)
            with whole_file(target) as file:
                yield file
    except OSError as error:
        raise _refusal(path, error.strerror or str(error)) from None
    except UnicodeEncodeError as error:
        character = error.object[error.start]
        raise _refusal(path, f"{character!r} is no character that a file can hold") from None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all; as for `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def check_writable(path: Path, *sources: Path) -> None:
    """Tell before the work begins that `replacing` could not write a file; nothing is changed.

    Args:
        path: to be written.
        sources: what is read meanwhile.

    Raises:
        FormatError: a folder, what is read, or a place where no file can be made.
    """
    try:
        target = _follow(path)
        if isinstance(target, int):
            return
        if target.is_dir():
            raise _refusal(path, "it is a folder")
        is_file = target.is_file()
        if is_file and any(each.exists() and target.samefile(each) for each in sources):
            raise FormatError(f"{path}: this is the input, which would be overwritten")
        _check_permission(target)
        if is_file or not target.exists():
            descriptor, name = _new_file(target.parent)
            os.close(descriptor)
            if name is not None:
                name.unlink()
    except OSError as error:
        raise _refusal(path, error.strerror or str(error)) from None


@contextmanager
def whole_file(target: Path) -> Iterator[IO[bytes]]:
    """As `replacing`, with the errors of the system, and in place of whatever `target` is."""
    _remove_abandoned(target.parent)
    descriptor, name = _new_file(target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if sys.platform == "win32":
                file.close()  # what is open has no other name given there
            elif target.is_file():
                os.fchmod(descriptor, target.stat().st_mode & 0o777)
            if name is None:
                name = _new_name(target.parent)
                # With `src_dir_fd`, or Python does not follow the link to the file without a name.
                os.link(_path_of(descriptor), name, src_dir_fd=descriptor)
            name.replace(target)
    except BaseException:
        if name is not None:
            name.unlink(missing_ok=True)
        raise


@contextmanager
def locked(folder: Path, seconds: float) -> Iterator[None]:
    """Hold a folder's lock, as one process at a time does.

    After so many seconds, and where there are no locks, the block runs without it.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + seconds
        with suppress(OSError):
            while time.monotonic() < end:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def _refusal(path: str | os.PathLike[str], why: str) -> FormatError:
    return FormatError(f"{os.fspath(path)} cannot be written: {why}")


def _follow(path: Path) -> Path | int:
    """What a path's links lead to: a path, or a descriptor of this process (/dev/stdout leads to
    /proc/self/fd/1). That one is written to as it is: it may be a pipe, or a file that is added to.
    """
    own = f"{os.path.realpath('/proc/self')}/fd"
    target = path.absolute()
    for _ in range(_MOST_LINKS):
        target = Path(os.path.realpath(target.parent), target.name)
        if str(target.parent) == own and target.name.isdecimal():
            return int(target.name)
        if not target.is_symlink():
            return target
        target = target.parent / target.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _check_permission(target: Path) -> None:
    """Refuse a file that its owner has made read-only, although its folder would let us."""
    if target.exists() and not os.access(target, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(target))


@contextmanager
def _stream(descriptor: int) -> Iterator[IO[bytes]]:
    """What is written in the block, sent at its end: who writes may need to go back in a file."""
    with os.fdopen(descriptor, "wb") as stream:
        content = io.BytesIO()
        yield content
        stream.write(content.getbuffer())


def _new_file(folder: Path) -> tuple[int, Path | None]:
    """A new file in a folder, locked, with the permissions of any new file; its name, if any."""
    if sys.platform == "linux":
        with suppress(OSError):
            descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666)
            if _path_of(descriptor).exists():
                _lock(descriptor, wait=True)
                return descriptor, None
            os.close(descriptor)
    while True:
        name = _new_name(folder)
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
        descriptor = os.open(name, flags, 0o666)
        _lock(descriptor, wait=True)
        # Before it was locked another writer may have removed it.
        if os.fstat(descriptor).st_nlink:
            return descriptor, name
        os.close(descriptor)


def _new_name(folder: Path) -> Path:
    return folder / f".eplb-{secrets.token_hex(8)}.part"


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}")


def _remove_abandoned(folder: Path) -> None:
    """Remove files that killed writers left in a folder; those being written stay."""
    with suppress(OSError):
        for path in [each for each in folder.iterdir() if _TEMPORARY.fullmatch(each.name)]:
            with suppress(OSError):
                if not stat.S_ISREG(path.lstat().st_mode):
                    continue
                with path.open("r+b") as file:
                    abandoned = _lock(file.fileno(), wait=False)
                    if abandoned and sys.platform != "win32":
                        path.unlink()
                if abandoned and sys.platform == "win32":
                    path.unlink()  # refused while it is open anywhere


if sys.platform == "win32":

    def _lock(descriptor: int, *, wait: bool) -> bool:
        """Nothing to do: a file that is open cannot be removed."""
        return True

else:
    import fcntl

    def _lock(descriptor: int, *, wait: bool) -> bool:
        """Lock a file until its last descriptor is closed, by the system where its holder dies."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            return False
        return True
