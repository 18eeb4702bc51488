"""A small engine that balances its experts with eplb: serve, count, plan, migrate.

    python examples/engine.py

The "engine" is arrays: a GPU's memory is a list of slots that hold an expert's weights, and a step
routes made-up tokens. What is real is how it calls eplb, which is all that another engine needs.
"""

import numpy as np
from numpy.typing import NDArray

import eplb

LAYERS, EXPERTS = 4, 32
CLUSTER = eplb.Cluster(num_gpus=8, num_nodes=2, slots_per_gpu=5)
STEPS, EVERY = 24, 4


def held_by_gpus(placement: eplb.Placement) -> list[set[tuple[int, int]]]:
    """The (layer, expert) that each GPU has in its memory."""
    gpu_of = np.arange(CLUSTER.num_slots) // CLUSTER.slots_per_gpu
    held: list[set[tuple[int, int]]] = [set() for _ in range(CLUSTER.num_gpus)]
    for layer, row in enumerate(placement.phy2log):
        for gpu, expert in zip(gpu_of, row, strict=True):
            held[gpu].add((layer, int(expert)))
    return held


class Engine:
    """Experts in slots, and counters of the tokens that each got."""

    def __init__(self) -> None:
        eplb.warmup()  # compile the planner before requests come
        self.placement = eplb.Placement.contiguous(LAYERS, EXPERTS, CLUSTER)
        self.balancer = eplb.Balancer(EXPERTS, CLUSTER, current=self.placement)
        self.held = held_by_gpus(self.placement)
        self.counts = np.zeros((LAYERS, EXPERTS))

    def serve(self, tokens: NDArray[np.float64]) -> float:
        """Count the tokens [L, E] of a step; return how evenly they loaded the GPUs."""
        self.counts += tokens
        return self.placement.balancedness(tokens)

    def rebalance(self) -> eplb.Rebalance | None:
        """Ask for a plan, and move to it wave by wave; every expert is available all the time."""
        counts, self.counts = self.counts, np.zeros_like(self.counts)
        # With several ranks, add the counts up among them first (all-reduce). Each then plans for
        # itself; ranks that share balancer.digest get the same answer.
        answer = self.balancer.step(counts)
        if answer is None:
            return None
        migration = eplb.migrate(self.placement, answer.placement)
        for wave in range(migration.num_waves):
            # An engine sends the weights of a wave at once; migration.copies says how received
            # experts then get from their buffers into their slots.
            for row in np.flatnonzero(migration.wave == wave):
                self.send(
                    (int(migration.layer[row]), int(migration.expert[row])),
                    int(migration.source[row]),
                    int(migration.target[row]),
                )
        self.placement = answer.placement
        self.held = held_by_gpus(self.placement)
        return answer

    def send(self, weights: tuple[int, int], source: int, target: int) -> None:
        """Send the weights of a (layer, expert) from a GPU to another."""
        assert weights in self.held[source]
        self.held[target].add(weights)


def main() -> None:
    """Serve steps of changing load, and rebalance now and then."""
    draw = np.random.default_rng(0)
    popular = draw.lognormal(0.0, 1.0, (LAYERS, EXPERTS))
    engine = Engine()
    start = engine.placement
    for step in range(STEPS):
        popular *= draw.lognormal(0.0, 0.05, popular.shape)  # what users ask for drifts
        tokens = draw.poisson(100.0 * popular).astype(float)
        said = (
            f"step {step:2}: balancedness {engine.serve(tokens):.3f} "
            f"(in the first layout {start.balancedness(tokens):.3f})"
        )
        if step % EVERY == EVERY - 1:
            answer = engine.rebalance()
            said += ", waits" if answer is None else f", moves {answer.moves} experts"
        print(said)


if __name__ == "__main__":
    main()
