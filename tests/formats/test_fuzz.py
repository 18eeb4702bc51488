"""Every reader on damaged files: what it reads, or one error that names the file, soon.

An input is a small whole file with bytes changed, cut, repeated or taken from elsewhere, and
numbers replaced by others of the kind that headers claim. Each reader gets some hundreds of them,
and at least 10,000 in `make test-long`.
"""

import io
import json
import random
import re
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import eplb
from eplb import EplbError, LoadTrace
from eplb.formats import load_trace, save_trace
from eplb.formats.loads import json as json_reader
from eplb.formats.placements import Engine

# No kernel is involved: without the JIT the same inputs would only be read once more.
EXAMPLES = [6, pytest.param(250, marks=pytest.mark.long)]
"""Numbers drawn for each kind of file."""

DAMAGES = 40
"""Inputs made from one drawn number: drawing takes longer than reading."""

SECONDS = 2.0

MOST_MEMORY = 256 << 20
"""Bytes; the arrays that come of these inputs are too small to count."""

TRACE = LoadTrace(
    np.array([[[0.0, 0.0], [5.0, 1.0]], [[0.0, 0.0], [2.0, 300.0]]]),
    ["decode, 1", 'prefill "2"'],
    np.array([1.5, 2.5]),
    top_k=2,
    model="a model",
)

SPLICES = [
    *(str(number).encode() for number in (0, 1, 255, 256, 2**31, 2**63, 2**64, 10**30)),
    *(b"-1", b"1e400", b"NaN", b"-0.0", b"1" * 5000, b"[" * 5000, b'{"a":' * 500, b"\xef\xbb\xbf"),
    *(number.to_bytes(4, "little") for number in (0, 1, 2**16, 2**31 - 1, 2**32 - 1)),
    *(number.to_bytes(8, "little") for number in (2**32, 2**40, 2**63 - 1, 2**64 - 1)),
    *(
        b"\0",
        b"\xff",
        b"\x80",
        b'"',
        b"\n",
        b",",
        b"]",
        b"}",
        b"(",
        b"c__builtin__\neval\n",
        b"]" * 99,
    ),
]


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """The file after one to three changes."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        # What files say about themselves stands at their ends.
        if rng.random() < 0.3:
            at = min(at, rng.randrange(64))
        elif rng.random() < 0.3:
            at = max(0, len(data) - rng.randrange(1, 96))
        kind = rng.randrange(7)
        if kind == 0:
            data[at : at + 1] = rng.randbytes(1)
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at : at + rng.choice((0, 1, 4, 8))] = rng.choice(SPLICES)
        elif kind == 4:
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + rng.randrange(1, 64)]
        elif kind == 5:
            del data[at : at + rng.randrange(1, 16)]
        else:
            numbers = list(re.finditer(rb"\d+", data))
            if numbers:
                start, end = rng.choice(numbers).span()
                data[start:end] = rng.choice(SPLICES)
    return bytes(data)


def damaged_inside(whole: bytes, rng: random.Random) -> bytes:
    """An archive with one damaged member, and sums that fit: what checks of sums cannot catch."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    chosen = rng.randrange(len(members))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, (info, data) in enumerate(members):
            archive.writestr(info, damaged(data, rng) if number == chosen else data)
    return buffer.getvalue()


def numpy_file(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, TRACE.loads)
    else:
        np.savez(buffer, loads=TRACE.loads, other=np.arange(3))
    return buffer.getvalue()


def saved(name: str, folder: Path) -> bytes:
    save_trace(TRACE, folder / name)
    return (folder / name).read_bytes()


def torch_file(content: str) -> bytes:
    torch = pytest.importorskip("torch", reason="torch writes .pt files")
    record = {
        "forward_pass_id": 7,
        "rank": 0,
        "gatherer_key": "primary",
        "input_ids": [1, 70_000],
        "topk_ids_of_layer": torch.tensor([[[0, 1], [2, -1]]], dtype=torch.int32),
    }
    counted = {"global_physical_count": torch.tensor([[3, 0, 4]], dtype=torch.int32)}
    phy2log = {"last_physical_to_logical_map": torch.tensor([[0, 1, 0]])}
    contents = {
        "bare": torch.ones(2, 2, 3),
        "stat": {"rank": 0, "logical_count": torch.ones((2, 2, 3), dtype=torch.int32)},
        "per_pass": {"records": [{**record, **counted}], **phy2log},
        "per_token": {"records": [record], **phy2log},
    }
    buffer = io.BytesIO()
    torch.save(contents[content], buffer)
    return buffer.getvalue()


def plain_parquet(folder: Path) -> bytes:
    pa = pytest.importorskip("pyarrow", reason="pyarrow writes Parquet files")
    import pyarrow.parquet as pq

    path = folder / "plain.parquet"
    pq.write_table(pa.table({"0": [1, 2], "1": [0.5, 3.0]}), path, compression="gzip")
    return path.read_bytes()


HISTORY = json.dumps(
    {"load_history": [{"step": 1, "logical_expert_load": w} for w in TRACE.loads.tolist()]}
)

LINES = "\n".join(
    [
        json.dumps({"layer": 3, "topk_ids": [1, 0]}),
        json.dumps({"layer": 3, "expert": 1, "count": 5}),
        json.dumps({"choices": [{"routed_experts": [[[0, 1], [2, -1]]]}]}),
        json.dumps({"window_expert_load": [[1, 2, 0]], "physical_to_logical_map": [[0, 1, -1]]}),
    ]
)

SAMPLES: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "json": ("a.json", lambda _: json.dumps({"logical_count": TRACE.loads.tolist()}).encode()),
    "bare json": ("a.json", lambda _: json.dumps(TRACE.loads[0].tolist()).encode()),
    "history": ("a.json", lambda _: HISTORY.encode()),
    "json in pieces": ("a.json", lambda _: HISTORY.encode()),
    "json lines": ("a.jsonl", lambda _: LINES.encode()),
    "npy": ("a.npy", lambda _: numpy_file("npy")),
    "npz": ("a.npz", lambda _: numpy_file("npz")),
    "own npz": ("a.npz", lambda folder: saved("a.npz", folder)),
    "csv": ("a.csv", lambda _: b"layer,expert 0,expert 1\n0,1,2.5\n1,0,4\n"),
    "long csv": ("a.csv", lambda folder: saved("a.csv", folder)),
    "parquet": ("a.parquet", plain_parquet),
    "long parquet": ("a.parquet", lambda folder: saved("a.parquet", folder)),
    "bare tensor": ("a.pt", lambda _: torch_file("bare")),
    "stat": ("a.pt", lambda _: torch_file("stat")),
    "per_pass": ("a.pt", lambda _: torch_file("per_pass")),
    "per_token": ("a.pt", lambda _: torch_file("per_token")),
}


class TooSlowError(BaseException):
    """No reader raises or catches it."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise where the block takes the processor longer than `SECONDS`, on a busy machine too."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def memory(name: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM, the most since it was last set back."""
    status = Path("/proc/self/status").read_text()
    match = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    assert match is not None
    return int(match[1]) << 10


def anew(path: Path) -> Callable[[bytes], object]:
    """Writes a file that was not there: a file system may wait for the disk where a file is cut."""

    def write(data: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    return write


def check(
    path: Path, data: bytes, write: Callable[[bytes], object], read: Callable[[], object]
) -> None:
    """Write and read one input: what is there, or one line that names the file."""
    write(data)
    try:
        with limited():
            read()
    except EplbError as error:
        message = str(error)
        assert message.startswith(str(path)), (message, data)
        assert message.isprintable(), (message, data)
        assert len(message) < 600, (message, data)
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__}: {error}: {data!r}") from error


def fuzz(
    path: Path,
    whole: bytes,
    write: Callable[[bytes], object],
    read: Callable[[], object],
    examples: int,
) -> None:
    """Read `examples` times `DAMAGES` damaged inputs."""

    @settings(
        max_examples=examples, database=None, suppress_health_check=list(HealthCheck), deadline=None
    )
    @given(st.integers(0, 2**64 - 1))
    def read_damaged(seed: int) -> None:
        rng = random.Random(seed)
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        for _ in range(DAMAGES):
            inside = whole.startswith(b"PK") and rng.random() < 0.6
            check(path, (damaged_inside if inside else damaged)(whole, rng), write, read)
        grown = memory("VmHWM") - before
        assert grown < MOST_MEMORY, f"{grown >> 20} MiB"

    write(whole)
    read()
    read_damaged()


def read_trace(path: Path) -> None:
    assert load_trace(path).loads.min() >= 0


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("kind", SAMPLES)
def test_damaged_files(
    kind: str, examples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind.endswith("in pieces"):
        monkeypatch.setattr(json_reader, "_PIECE", 16)
    name, make = SAMPLES[kind]
    path = tmp_path / name
    fuzz(path, make(tmp_path), anew(path), lambda: read_trace(path), examples)


def statistics(folder: Path) -> bytes:
    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors writes statistics")
    (folder / "meta_info.json").write_text('{"num_experts": 2, "num_experts_per_token": 1}')
    counts = {f"{it}_{layer}": np.array([it, layer], np.int32) for it in (4, 5) for layer in (1, 2)}
    data: bytes = safetensors.save(counts)
    (folder / "rank1.safetensors").write_bytes(data)
    (folder / "rank0.safetensors").write_bytes(data)
    return data


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("name", ["rank0.safetensors", "meta_info.json"])
def test_damaged_statistics(name: str, examples: int, tmp_path: Path) -> None:
    statistics(tmp_path)
    path = tmp_path / name
    fuzz(tmp_path, path.read_bytes(), anew(path), lambda: read_trace(tmp_path), examples)


PLACEMENT = eplb.Placement(np.array([[0, 1, 2, 0], [2, 0, 1, 2]]), 3, eplb.Cluster(2, 1, 2))


def placement_file(kind: str, folder: Path) -> bytes:
    """A small whole file."""
    if kind == "sglang pt":
        torch = pytest.importorskip("torch", reason="torch writes .pt files")
        path = folder / "a.pt"
        torch.save({"physical_to_logical_map": torch.tensor(PLACEMENT.phy2log.copy())}, path)
        return path.read_bytes()
    if kind == "bare npy":
        path = folder / "a.npy"
        np.save(path, PLACEMENT.phy2log)
        return path.read_bytes()
    if kind == "whole tensorrt-llm":
        inner = {"num_slots": 4, "initial_global_assignments": {"3": [0, 1, 2, 0]}}
        return json.dumps({"moe_config": {"load_balancer": inner}}).encode()
    engine = next(name for name in get_args(Engine) if name == kind.removesuffix(" json"))
    path = folder / ("a" + {"tensorrt-llm": ".yaml", "deepseek": ".npz"}.get(kind, ".json"))
    eplb.save_placement(PLACEMENT, path, to=engine)
    return path.read_bytes()


PLACEMENTS = [*get_args(Engine), "deepseek json", "sglang pt", "bare npy", "whole tensorrt-llm"]


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("kind", PLACEMENTS)
def test_damaged_placements(kind: str, examples: int, tmp_path: Path) -> None:
    # Imported before the first input: whatever an archive looks like, its package is there in time.
    for package in ("torch", "yaml"):
        pytest.importorskip(package, reason="reads placements")
    # The name says nothing: what is inside is recognised, however it is damaged.
    path = tmp_path / "placement"
    dense = np.zeros(1 if kind == "whole tensorrt-llm" else 2, np.bool_)

    def read() -> None:
        assert eplb.load_placement(path, 2, dense=dense).logcnt.min() >= 1

    fuzz(path, placement_file(kind, tmp_path), anew(path), read, examples)
