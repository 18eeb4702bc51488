"""Files are written whole or not at all; what is no file is written to; nothing is left behind."""

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from eplb import LoadTrace, load_trace, save_trace
from eplb import files as files_module
from eplb.errors import FormatError
from eplb.files import check_writable, replacing, write_text

posix = pytest.mark.skipif(sys.platform == "win32", reason="this system has other files")


@pytest.fixture(params=["without a name", "with a name"])
def temporary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a file is made to the side: the second way is for systems that lack the first."""
    if request.param == "with a name":
        monkeypatch.setattr(files_module, "_path_of", lambda _: Path("/no/such/path"))
    elif not hasattr(os, "O_TMPFILE"):
        pytest.skip("this system has only the second way")
    return str(request.param)


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def interrupted(path: Path) -> None:
    with replacing(path) as file:
        file.write(b"half")
        file.flush()
        assert path.read_text() == "old"
        raise KeyboardInterrupt


@pytest.mark.usefixtures("temporary")
def test_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@posix
@pytest.mark.usefixtures("temporary")
def test_permissions_are_the_files_own_or_those_of_any_new_file(tmp_path: Path) -> None:
    path, other = tmp_path / "a.json", tmp_path / "other"
    other.touch()
    write_text(path, "new")
    assert permissions(path) == permissions(other)
    path.chmod(0o640)
    write_text(path, "newer")
    assert permissions(path) == 0o640


@posix
@pytest.mark.usefixtures("temporary")
def test_the_umask_is_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o077)
    try:
        with monkeypatch.context() as patched:
            patched.delattr("os.umask")
            write_text(tmp_path / "a.json", "{}")
            check_writable(tmp_path / "b.json")
        assert permissions(tmp_path / "a.json") == 0o600
    finally:
        os.umask(before)


@posix
@pytest.mark.usefixtures("temporary")
def test_a_link_stays_and_leads_to_what_was_written(tmp_path: Path) -> None:
    real = tmp_path / "folder" / "real.json"
    real.parent.mkdir()
    real.write_text("old")
    (tmp_path / "way").symlink_to("folder")
    links = [tmp_path / "one.json", tmp_path / "two.json", real.parent / "three.json"]
    links[0].symlink_to("two.json")
    links[1].symlink_to("way/three.json")
    links[2].symlink_to(real)
    check_writable(links[0])
    write_text(links[0], "new")
    assert real.read_text() == "new"
    assert not real.is_symlink()
    assert all(link.is_symlink() for link in links)
    # Where it leads nowhere yet, that is made.
    real.unlink()
    check_writable(links[0])
    assert not real.exists()
    write_text(links[0], "newer")
    assert real.read_text() == "newer"
    assert all(link.is_symlink() for link in links)


@posix
def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("none/a.json")
    for name in ("loop", "dangling"):
        with pytest.raises(FormatError, match=f"{name} cannot be written"):
            check_writable(tmp_path / name)
        with pytest.raises(FormatError, match=f"{name} cannot be written"):
            write_text(tmp_path / name, "text")


@posix
def test_a_fifo_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "fifo.npz"
    os.mkfifo(path)
    check_writable(path)
    received = []
    reader = threading.Thread(target=lambda: received.append(path.read_bytes()), daemon=True)
    reader.start()
    trace = LoadTrace(np.arange(24.0).reshape(2, 3, 4))
    save_trace(trace, path)  # a zip file, which is not written from front to end
    reader.join(60.0)
    (tmp_path / "copy.npz").write_bytes(received[0])
    assert np.array_equal(load_trace(tmp_path / "copy.npz").loads, trace.loads)
    assert stat.S_ISFIFO(path.stat().st_mode)


@posix
def test_a_reader_of_a_fifo_does_not_wait_for_what_failed(tmp_path: Path) -> None:
    path = tmp_path / "fifo.json"
    os.mkfifo(path)
    received = []
    reader = threading.Thread(target=lambda: received.append(path.read_bytes()), daemon=True)
    reader.start()
    with pytest.raises(FormatError):
        write_text(path, "\ud800")
    reader.join(60.0)
    assert received == [b""]


@posix
def test_a_device_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Or a mistake would cost whoever runs this as root their /dev/null.
    monkeypatch.delattr(Path, "replace")
    monkeypatch.delattr("os.replace")
    null = tmp_path / "null.json"
    null.symlink_to("/dev/null")
    check_writable(null)
    write_text(null, "text")
    full = tmp_path / "full.json"
    full.symlink_to("/dev/full")
    if full.exists():
        with pytest.raises(FormatError, match=r"full.json cannot be written: No space left"):
            write_text(full, "text")


STDOUT = """
import sys
from pathlib import Path
from eplb.files import check_writable, write_text
check_writable(Path("/dev/stdout"))
write_text("/dev/stdout", "text")
"""


def to_stdout(stdout: int) -> None:
    subprocess.run([sys.executable, "-c", STDOUT], stdout=stdout, check=True, timeout=100)


@posix
def test_standard_output_is_written_to_whatever_it_is(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before ")
    with log.open("a") as file:
        before = os.fstat(file.fileno()).st_ino
        to_stdout(file.fileno())
        file.write(" after")
    assert log.read_text() == "before text after"
    assert log.stat().st_ino == before
    ends = socket.socketpair()
    with ends[0], ends[1]:
        to_stdout(ends[0].fileno())
        assert ends[1].recv(100) == b"text"
    read, write = os.pipe()
    to_stdout(write)
    assert os.read(read, 100) == b"text"
    os.close(read)
    with pytest.raises(subprocess.CalledProcessError):
        to_stdout(write)
    os.close(write)


@posix
def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # its path may not be long
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("a.json")
        with pytest.raises(FormatError, match=r"a.json cannot be written"):
            write_text("a.json", "text")
        assert stat.S_ISSOCK(Path("a.json").stat().st_mode)


KILLED = """
import sys, time
from pathlib import Path
from eplb import files
if sys.argv[2] == "with a name":
    files._path_of = lambda _: Path("/no/such/path")
with files.replacing(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(100)
"""


@posix
def test_a_killed_writer_leaves_nothing_for_long(tmp_path: Path, temporary: str) -> None:
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    path.write_text("old")
    other.write_text("old")
    command = [sys.executable, "-c", KILLED, str(path), temporary]
    for end in (signal.SIGKILL, signal.SIGTERM):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"writing\n"
            before = set(tmp_path.iterdir())
            assert len(before) == 2 + (temporary == "with a name")
            # Another one leaves alone what is still being written,
            write_text(other, "new")
            assert set(tmp_path.iterdir()) == before
            writer.send_signal(end)
        # and removes what nobody writes any more.
        write_text(other, "newer")
        assert set(tmp_path.iterdir()) == {path, other}
        assert path.read_text() == "old"


@posix
def test_only_its_own_are_removed(tmp_path: Path) -> None:
    own = tmp_path / ".eplb-0123456789abcdef.part"
    own.write_bytes(b"half")
    others = [tmp_path / name for name in (".eplb-mine.part", "eplb-0123456789abcdef.part")]
    for other in others:
        other.write_bytes(b"")
    folder = tmp_path / ".eplb-0000000000000000.part"
    folder.mkdir()
    fifo = tmp_path / ".eplb-0000000000000001.part"
    os.mkfifo(fifo)
    write_text(tmp_path / "a.json", "{}")
    assert set(tmp_path.iterdir()) == {*others, folder, fifo, tmp_path / "a.json"}


def test_a_full_disk(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.json"
    path.write_text("old")
    code = "import sys; from eplb.files import write_text; write_text(sys.argv[1], 'new' * 1000)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert f"FormatError: {path} cannot be written: File too large" in done.stderr
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_no_file_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    said = r"a.json cannot be written: '\\ud800' is no character that a file can hold"
    with pytest.raises(FormatError, match=said):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_check_says_what_writing_would(tmp_path: Path) -> None:
    """And changes nothing."""
    file = tmp_path / "file.json"
    file.write_text("old")
    (tmp_path / "link.json").symlink_to(file)
    before = tmp_path.stat().st_mtime_ns
    for name, why in (
        (".", "it is a folder"),
        ("none/a.json", "No such file or directory"),
        ("file.json/a.json", "Not a directory"),
        ("a" * 300, "File name too long"),
    ):
        with pytest.raises(FormatError, match=f"cannot be written: {why}"):
            check_writable(tmp_path / name)
        with pytest.raises(FormatError, match="cannot be written"):
            write_text(tmp_path / name, "text")
    for name in ("file.json", "link.json"):
        with pytest.raises(FormatError, match="this is the input, which would be overwritten"):
            check_writable(tmp_path / name, file)
        check_writable(tmp_path / name, tmp_path / "other.json")
    check_writable(tmp_path / "new.json", file)
    assert tmp_path.stat().st_mtime_ns == before
    assert file.read_text() == "old"


def refused_without_permission(folder: Path) -> None:
    file = folder / "a.json"
    file.write_text("old")
    file.chmod(0o400)
    (folder / "inside").mkdir()
    (folder / "inside").chmod(0o500)
    for path in (file, folder / "inside" / "a.json"):
        for write in (check_writable, lambda path: write_text(path, "new")):
            with pytest.raises(FormatError, match="cannot be written: Permission denied"):
                write(path)
    assert file.read_text() == "old"


@posix
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_without_permission() -> None:
    """A file that is read-only is not replaced, though its folder could be written to."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if os.geteuid() != 0:
            refused_without_permission(folder)
            return
        # Root may write anywhere: somebody else, of whom no more is needed, tries it.
        os.chown(folder, 65534, 65534)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                refused_without_permission(folder)
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
