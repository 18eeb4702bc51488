"""`import eplb` stays light, and gives the names that it promises."""

import importlib.metadata
import pickle
import subprocess
import sys

import pytest

import eplb
from eplb import errors

HEAVY = {"highspy", "numba", "numpy", "ortools", "pandas", "rich", "scipy", "torch", "typer"}


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light() -> None:
    loaded = in_a_fresh_process("import sys, eplb; print(*sys.modules)").split()
    assert "eplb" in loaded
    assert not HEAVY & set(loaded)


def test_errors_and_clusters_are_light_too() -> None:
    """What a program needs to catch errors and to describe its GPUs."""
    code = "import sys, eplb; eplb.EplbError; eplb.Cluster(4, 1, 2); print(*sys.modules)"
    assert not HEAVY & set(in_a_fresh_process(code).split())


def test_commands_that_plan_nothing_load_no_compiler() -> None:
    code = "import sys, eplb.cli.commands; print(*sys.modules)"
    assert not {"highspy", "numba", "pandas", "scipy", "torch"} & set(
        in_a_fresh_process(code).split()
    )


def test_names_are_locked() -> None:
    assert eplb.__all__ == [
        "Balancer",
        "Batch",
        "Cluster",
        "ClusterError",
        "Decision",
        "Dispatch",
        "EplbError",
        "FormatError",
        "Frontier",
        "LoadTrace",
        "LoadsError",
        "Migration",
        "MissingExtraError",
        "OptionError",
        "Pins",
        "Placement",
        "PlacementError",
        "Plan",
        "PolicyError",
        "Rebalance",
        "Replay",
        "Service",
        "Traffic",
        "UnsolvedError",
        "__version__",
        "backtest",
        "compare",
        "cost",
        "decide",
        "dispatch",
        "forecast",
        "frontier",
        "load_placement",
        "load_trace",
        "migrate",
        "other_nodes",
        "plan",
        "rebalance_experts",
        "replay",
        "save_placement",
        "save_trace",
        "size",
        "sweep",
        "synthetic",
        "warmup",
    ]


@pytest.mark.parametrize("name", eplb.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(eplb, name) is getattr(eplb, name)
    assert name in dir(eplb)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="module 'eplb' has no attribute 'plam'"):
        eplb.plam  # noqa: B018


def test_dispatch_on_the_device_is_reachable() -> None:
    pytest.importorskip("torch")
    code = "import eplb; print(eplb.torch.BatchDispatch.__name__)"
    assert in_a_fresh_process(code).split() == ["BatchDispatch"]


def test_dispatch_on_the_device_without_torch_names_what_to_install() -> None:
    code = """
import sys, eplb
sys.modules["torch"] = None
try:
    eplb.torch
except eplb.MissingExtraError as error:
    print(error)
"""
    assert "pip install torch" in in_a_fresh_process(code)
    assert "torch" not in dir(eplb) or "torch" in vars(eplb)  # what lists names needs no extra


def test_star_import() -> None:
    code = (
        "from eplb import *; print(plan.__module__, rebalance_experts.__name__, Cluster(1, 1, 1))"
    )
    assert in_a_fresh_process(code).startswith("eplb.planning.plan rebalance_experts Cluster(")


@pytest.mark.parametrize(
    "before",
    [
        "",
        "import eplb.planning.plan",
        "import eplb.planning.drop_in, eplb.placement",
        "import eplb.solver.recount",
    ],
)
def test_plan_is_the_function_whatever_was_imported(before: str) -> None:
    code = f"{before or 'pass'}\nimport eplb\nprint(type(eplb.plan).__name__, eplb.plan.__name__)"
    assert in_a_fresh_process(code).split() == ["function", "plan"]


def test_tree_of_errors() -> None:
    for name in errors.__all__:
        error = getattr(errors, name)
        assert issubclass(error, errors.EplbError)
        assert getattr(eplb, name) is error
        # Each is drawn at the head of its file, under the root.
        assert errors.__doc__ is not None
        assert name in errors.__doc__
    for error in (
        errors.LoadsError,
        errors.ClusterError,
        errors.PlacementError,
        errors.FormatError,
        errors.OptionError,
        errors.PolicyError,
    ):
        assert issubclass(error, ValueError)
    assert issubclass(errors.UnsolvedError, RuntimeError)
    assert issubclass(errors.MissingExtraError, ImportError)
    assert str(errors.MissingExtraError("torch", "torch", "reading .pt files")) == (
        "reading .pt files needs torch: pip install torch, or eplb with its extra 'torch'"
    )


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_travel_between_processes(name: str) -> None:
    kind = getattr(errors, name)
    error = kind("torch", "torch", "reading") if name == "MissingExtraError" else kind("wrong")
    sent = pickle.loads(pickle.dumps(error))
    assert (type(sent), str(sent)) == (kind, str(error))


def test_version_is_that_of_the_distribution() -> None:
    try:
        installed = importlib.metadata.version("eplb")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("eplb is run from its sources, not installed")
    assert eplb.__version__ == installed


WARM = """
import gc, eplb, numpy as np
from numba.core.dispatcher import Dispatcher

def compiled():
    kernels = [each for each in gc.get_objects() if isinstance(each, Dispatcher)]
    return sum(len(each.overloads) for each in kernels if each.__module__.startswith("eplb."))

eplb.warmup()
before = compiled()
rng = np.random.default_rng(0)
for num_groups in (1, 4):
    for slots_per_gpu in (2, 3, 6):
        cluster = eplb.Cluster(8, 2, slots_per_gpu)
        eplb.plan(rng.lognormal(size=(4, 16)), cluster, num_groups=num_groups).placement.log2phy
        eplb.rebalance_experts(np.zeros((4, 16)), cluster.num_slots, num_groups, 2, 8)
# Kinds of arrays and numbers that a compiler tells apart.
fixed = rng.lognormal(size=(4, 16))
fixed.flags.writeable = False
odd = np.frombuffer(bytearray(4 * 16 * 8 + 1), np.uint8)[1:].view(np.float64).reshape(4, 16)
for loads in (fixed, odd, np.asfortranarray(fixed), fixed.astype(">f8"), fixed[::2, ::-1]):
    eplb.plan(loads, cluster, num_groups=np.int32(4), threads=np.int16(2)).placement.log2phy
# Rebalances of an engine: from the start, from what runs within a budget, and to other ranks.
from eplb.engines.live import next_placement
from eplb.engines.settings import Settings
windows = rng.lognormal(size=(5, 4, 32))
for num_groups in (1, 4):
    current = None
    for seen, num_gpus in enumerate((8, 8, 8, 10, 8), 1):
        cluster = eplb.Cluster(num_gpus, 2, 5)
        for budget in (Settings(), Settings(effort="default")):
            phy2log = next_placement(windows[:seen], cluster, num_groups, current, budget)
        current = eplb.Placement(phy2log, 32, cluster)
print(before, compiled() - before)
"""


def test_nothing_is_compiled_or_loaded_after_warmup() -> None:
    warm, more = map(int, in_a_fresh_process(WARM).split())
    assert warm > 0
    assert more == 0
