"""Every reader of placements on damaged files: a placement or one of the project's errors, soon."""

import json
import random
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_fuzz import DAMAGES, MOST_MEMORY, damaged, damaged_inside, limited, memory

import eplb
from eplb.formats.placements import Engine

# No kernel is involved: without the JIT the same inputs would only be read once more.
pytestmark = pytest.mark.jit

EXAMPLES = 20
"""For each kind of file; 800 inputs."""

PLACEMENT = eplb.Placement(np.array([[0, 1, 2, 0], [2, 0, 1, 2]]), 3, eplb.Cluster(2, 1, 2))


def written(engine: str, folder: Path) -> bytes:
    """A small whole file."""
    if engine == "sglang pt":
        torch = pytest.importorskip("torch", reason="torch writes .pt files")
        path = folder / "a.pt"
        torch.save({"physical_to_logical_map": torch.tensor(PLACEMENT.phy2log.copy())}, path)
        return path.read_bytes()
    if engine == "bare npy":
        path = folder / "a.npy"
        np.save(path, PLACEMENT.phy2log)
        return path.read_bytes()
    if engine == "deepseek json":
        path = folder / "a.json"
        eplb.save_placement(PLACEMENT, path, to="deepseek")
        return path.read_bytes()
    if engine == "whole tensorrt-llm":
        inner = {"num_slots": 4, "initial_global_assignments": {"3": [0, 1, 2, 0]}}
        return json.dumps({"moe_config": {"load_balancer": inner}}).encode()
    for name in get_args(Engine):
        if name == engine:
            path = folder / ("a" + {"tensorrt-llm": ".yaml", "deepseek": ".npz"}.get(name, ".json"))
            eplb.save_placement(PLACEMENT, path, to=name)
            return path.read_bytes()
    raise AssertionError(engine)


KINDS = [*get_args(Engine), "deepseek json", "sglang pt", "bare npy", "whole tensorrt-llm"]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_placements(kind: str, tmp_path: Path) -> None:
    if "tensorrt" in kind:
        pytest.importorskip("yaml", reason="PyYAML reads TensorRT-LLM's placements")
    # Where an archive looks like tensors, torch is wanted: not within the time of one input.
    pytest.importorskip("torch", reason="torch reads .pt files")
    whole = written(kind, tmp_path)
    # The name says nothing: what is inside is recognised, however it is damaged.
    path = tmp_path / "placement"

    dense = np.zeros(1 if kind == "whole tensorrt-llm" else 2, np.bool_)

    def check(data: bytes) -> None:
        path.write_bytes(data)
        message = None
        try:
            with limited():
                placement = eplb.load_placement(path, 2, dense=dense)
        except eplb.EplbError as error:
            message = str(error)
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__}: {error}: {data!r}") from error
        if message is None:
            assert placement.logcnt.min() >= 1, data
        else:
            assert message.startswith(str(path)), (message, data)
            assert message.isprintable(), (message, data)
            assert len(message) < 600, (message, data)

    @settings(
        max_examples=EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    @given(st.integers(0, 2**64 - 1))
    def read(seed: int) -> None:
        rng = random.Random(seed)
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        for _ in range(DAMAGES):
            inside = whole.startswith(b"PK") and rng.random() < 0.6
            check((damaged_inside if inside else damaged)(whole, rng))
        grown = memory("VmHWM") - before
        assert grown < MOST_MEMORY, f"{grown >> 20} MiB"

    path.write_bytes(whole)
    eplb.load_placement(path, 2, dense=dense)
    read()
