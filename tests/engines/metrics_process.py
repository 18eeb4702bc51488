"""A process that plans, as an engine's first rank: after each line of JSON it has told of a
rebalance of so many layers and ranks, or counted steps. It has the role that is given to it.
"""

import json
import logging
import sys

import numpy as np

from eplb import Cluster, Placement, plan
from eplb.engines.metrics import Counted
from eplb.engines.rebalances import Outcome, Rebalances, Seen
from eplb.engines.settings import Settings

rebalances = Rebalances(logging.getLogger("an engine"), Settings(), "its own policy")
counted = Counted(rebalances, next(iter(sys.argv[1:]), None))
counted.begin(logging.getLogger("an engine"))
counted.begin(logging.getLogger("an engine"))  # of a second model
print("ready", flush=True)  # noqa: T201
for line in sys.stdin:
    given = json.loads(line)
    for _ in range(given.get("steps", 0)):
        counted.step(12)
    if "layers" in given:
        cluster = Cluster(given["ranks"], 1, 5)
        shape = (1, given["layers"], 4 * given["ranks"])
        windows = np.random.default_rng(0).lognormal(5.0, 1.0, shape)
        running = Placement.contiguous(*shape[1:], cluster)
        made = plan(windows, cluster, effort="fast").placement
        decision = given.get("decision", "planned")
        kept = decision != "planned"
        phy2log = (running if kept else made).phy2log
        seen = Seen(windows, 1, shape[2], cluster, running)
        rebalances.tell(str(shape), seen, Outcome(decision, phy2log, 0.25, not kept))
        load = made.gpu_load(windows)
        of_layers = (load.mean(axis=-1) / load.max(axis=-1))[0]
        print(json.dumps([made.moves_from(running), of_layers.tolist()]), flush=True)  # noqa: T201
    else:
        print("counted", flush=True)  # noqa: T201
