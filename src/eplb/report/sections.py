"""The sections of a report, one function each: heading, finding, notes and tables."""

from eplb.checks import counted, more, printable
from eplb.report.figures import Figures, Missing, Moment, Splits, Through
from eplb.report.words import NAMES, Section, Table, copies_of, percent, score

_NEAR_BEST = 0.01
"""Balancedness below the best in which a finding looks for the fewest nodes."""
_MOST_CELLS = 50_000
"""Figures of a table up to which all are listed: a page has to open on a phone."""


def balance(figures: Figures) -> Section:
    """Balancedness now and planned, seen and unseen."""
    now, plan, engine = figures.now, figures.plan, figures.engine
    unseen = plan.unseen is not None
    if plan.unseen is not None and now.unseen is not None:
        finding = (
            f"On unseen loads a plan {_lifts(now.unseen, plan.unseen)} balancedness from "
            f"{now.unseen:.4f} to {plan.unseen:.4f}"
        )
        if engine.unseen is not None:
            finding += f"; the engine's own planner reaches {engine.unseen:.4f}"
    else:
        finding = (
            f"On the window it was made from, a plan {_lifts(now.seen, plan.seen)} balancedness "
            f"from {now.seen:.4f} to {plan.seen:.4f}"
        )
    rows = [
        (
            NAMES[each.who],
            score(each.seen, each.seen_interval),
            score(each.unseen, each.unseen_interval),
            score(each.worst),
            "-" if each is now else score(each.gain, each.gain_interval, "+.4f"),
            "-" if each is engine else score(each.engine_gain, each.engine_gain_interval, "+.4f"),
            percent(each.moved, 1) if each.moved else "-",
        )
        for each in figures.standings
    ]
    headings = (
        "placement",
        "seen",
        "unseen",
        "worst unseen window",
        "gain",
        "over the engine's own",
        "moved per plan",
    )
    columns = len(headings) if unseen else 2
    caption = "Balancedness, mean over windows and layers"
    tables = [Table(caption, headings[:columns], [row[:columns] for row in rows])]
    ordered = figures.setting.ordered
    last = f"the last {counted(figures.seen_windows, 'window')}"
    notes = [
        f"Seen: {last if ordered else 'all workloads'}, which the recommended plan is made from. "
        "It is proven that on these no plan can be better by more than "
        f"{percent(figures.choice.gap, 2)} of the busiest GPU's load, mean over layers."
    ]
    if unseen:
        every = figures.setting.every
        shown = "window" if every == 1 else f"{every} windows"
        how = "each served by a plan made before it"
        if not ordered:
            how, shown = "each held out in turn and served by a plan for the others", "window"
        notes.append(
            f"Unseen: {counted(figures.unseen_windows, 'window')}, {how}. Gain: the difference "
            "from what runs now. Moved: share of slots for which GPUs receive an expert at each "
            "plan after the first. Perfect foresight (`oracle` in `eplb compare`) is a plan that "
            f"is shown the {shown} that it is to serve, which no engine can have."
        )
    notes.append(
        "The engine's own planner (policy `deepseek`) is DeepSeek's EPLB for the sum of the "
        "windows: what SGLang and vLLM do by themselves where their balancing is on."
    )
    if figures.unsure:
        notes.append(f"{figures.unsure[0].upper()}{figures.unsure[1:]}.")
    else:
        notes.append("± is half a 95 % confidence interval.")
    if isinstance(figures.splits, Splits):
        tables.append(_splits(figures.splits))
        which = "that came after" if ordered else "held out"
        notes.append(
            "Where an expert has several copies, a rule says which of them takes a token. Each "
            f"figure in the table of rules is from {counted(figures.splits.plans, 'plan')}, "
            f"scored on windows {which}."
        )
    if figures.choice.tried:
        tables.append(
            Table(
                "Forecasts, rules that say what to plan for, tried on the windows",
                ("forecast", "balancedness on unseen windows"),
                [
                    (f"{name} (chosen)" if name == figures.choice.forecast else name, score(value))
                    for name, value in figures.choice.tried
                ],
                long=True,
            )
        )
    return Section("balance", "Balance", finding, tuple(notes), tuple(tables))


def _splits(found: Splits) -> Table:
    """Each rule of dispatch, on the same plans and on those made for it."""
    engine = {"sglang": "SGLang's rule", "ascend": "vllm-ascend's rule"}[found.engine]
    return Table(
        "How tokens are split over copies",
        ("split", "plan made for an even split", "plan made for that rule"),
        [
            ("even", score(found.even), score(found.even)),
            (engine, score(found.by_engine), score(found.engine_placed)),
            ("best (re-split per window)", score(found.best), score(found.best_placed)),
        ],
    )


def _lifts(before: float | None, after: float | None) -> str:
    return "lowers" if (after or 0.0) < (before or 0.0) else "raises"


def heat(figures: Figures) -> Section:
    """Load of layer x GPU, before and after."""
    found = figures.heat
    before, after = (max(map(max, rows)) for rows in (found.before, found.after))
    finding = (
        f"The busiest GPU has {before:.2f} times the mean load of its layer now, and {after:.2f} "
        "times with a plan"
    )
    seen = "which the plan was made from" if found.seen else "which the plan had not seen"
    parts = (("now", found.before), ("plan", found.after))
    gpus: tuple[str, ...] = tuple(f"GPU {number}" for number in range(figures.setting.num_gpus))
    rows = [
        (f"layer {layer}, {name}", *(f"{load:.2f}" for load in loads))
        for name, part in parts
        for layer, loads in zip(found.layers, part, strict=True)
    ]
    if len(rows) * len(gpus) > _MOST_CELLS:
        gpus = ("busiest GPU", "its load", "least busy GPU", "its load")
        rows = [
            (f"layer {layer}, {name}", *_ends(loads))
            for name, part in parts
            for layer, loads in zip(found.layers, part, strict=True)
        ]
    table = Table("Load of each GPU over the mean of its layer", ("layer", *gpus), rows, long=True)
    typical = "" if found.seen else ", the most typical of the unseen windows"
    note = f"Window {printable(found.window)}, {seen}{typical}. Both maps share one colour scale."
    return Section("heat", "Load of each GPU", finding, (note,), (table,))


def _ends(loads: tuple[float, ...]) -> tuple[str, ...]:
    """The GPUs with the most and the least load, and their loads."""
    most, least = max(loads), min(loads)
    return (str(loads.index(most)), f"{most:.2f}", str(loads.index(least)), f"{least:.2f}")


def hot(figures: Figures) -> Section:
    """The hottest experts by layer."""
    top = max(figures.hot, key=lambda each: sum(each.shares))
    number = {1: "One expert carries", 2: "Two experts carry", 3: "Three experts carry"}
    finding = f"{number[len(top.experts)]} {percent(sum(top.shares))} of layer {top.layer}"
    even = len(top.experts) / figures.setting.num_experts
    rows = [
        (
            f"layer {each.layer}",
            ", ".join(
                f"{expert} ({percent(share, 1)}, {copies_of(copies)})"
                for expert, share, copies in zip(
                    each.experts, each.shares, each.copies, strict=True
                )
            ),
            f"{each.times_mean:.1f}",
        )
        for each in figures.hot
    ]
    headings = ("layer", "hottest experts (share of its load, copies planned)", "hottest / mean")
    note = f"All windows have equal weight. With even loads the share would be {percent(even, 1)}."
    table = Table("The hottest experts of each layer", headings, rows, long=True)
    return Section("hot", "Hottest experts", finding, (note,), (table,))


def estimated(figures: Figures) -> Section:
    """Estimated time per layer and tokens per second."""
    heading, found = "Estimated time", figures.estimated
    if isinstance(found, Missing):
        return Section("time", heading, "Time is not estimated", missing=f"{printable(found.why)}.")
    gain, over_engine = (
        found.tokens_after / other - 1.0 for other in (found.tokens_before, found.tokens_engine)
    )
    finding = (
        f"Estimate: {found.tokens_before:,.0f} tokens/s now, {found.tokens_after:,.0f} with a plan "
        f"({more(gain, 1)}; {more(over_engine, 1)} than with the engine's own planner)"
    )
    mean_before = sum(found.before_us) / len(found.before_us)
    mean_after = sum(found.after_us) / len(found.after_us)
    even_step = found.step_before * found.tokens_before / found.tokens_even
    summary = Table(
        "Estimates, now and with a plan",
        ("estimate", "now", "the engine's own", "with a plan", "with even loads"),
        [
            (
                "tokens/s, all GPUs",
                f"{found.tokens_before:,.0f}",
                f"{found.tokens_engine:,.0f}",
                f"{found.tokens_after:,.0f}",
                f"{found.tokens_even:,.0f}",
            ),
            (
                "a forward pass, ms",
                f"{found.step_before * 1e3:.2f}",
                f"{found.step_engine * 1e3:.2f}",
                f"{found.step_after * 1e3:.2f}",
                f"{even_step * 1e3:.2f}",
            ),
            (
                "an expert layer, µs",
                f"{mean_before:.0f}",
                "-",
                f"{mean_after:.0f}",
                f"{found.even_us:.0f}",
            ),
        ],
    )
    layers = Table(
        "Estimated time of each layer",
        ("layer", "now, µs", "with a plan, µs"),
        [
            (f"layer {layer}", f"{before:.1f}", f"{after:.1f}")
            for layer, before, after in zip(
                found.layers, found.before_us, found.after_us, strict=True
            )
        ],
        long=True,
    )
    seen = (
        "On the window that the plan was made from."
        if found.seen
        else f"On {counted(found.windows, 'window')} that the plans had not seen."
    )
    return Section(
        "time", heading, finding, (seen, *map(printable, found.words)), (summary, layers)
    )


def spare(figures: Figures) -> Section:
    """Balancedness against spare slots."""
    found = figures.spare
    knee, chosen = found.points[found.knee], found.points[found.chosen]
    unseen = found.windows > 0
    value = knee.unseen if knee.unseen is not None else knee.seen
    where = "unseen loads" if unseen else "the window seen"
    finding = (
        f"{counted(knee.spare, 'spare slot')} on each GPU {'is' if knee.spare == 1 else 'are'} "
        f"worth {'its' if knee.spare == 1 else 'their'} memory: {value:.4f} on {where}"
    )
    if knee.spare != chosen.spare:
        finding += f" (this plan has {chosen.spare})"
    rows = [
        (
            str(each.spare) + (" (knee)" if number == found.knee else ""),
            str(each.num_slots),
            score(each.seen),
            score(each.unseen),
        )
        for number, each in enumerate(found.points)
    ]
    table = Table(
        "Balancedness by spare slots on each GPU; the knee is the last number up to which each "
        "slot adds 0.01 or more",
        ("spare slots on a GPU", "slots in all", "seen", "unseen"),
        rows,
    )
    notes = ["A spare slot holds a redundant copy of an expert."]
    if unseen:
        notes.append(
            f"Each point is {counted(found.plans, 'plan')}, scored on "
            f"{counted(found.windows, 'window')} that they had not seen."
        )
        if chosen.unseen is not None and chosen.unseen != figures.plan.unseen:
            notes.append("There are fewer plans than above, so the figures differ a little.")
    if found.bytes_each is not None:
        note = f"A spare slot takes {found.bytes_each / 1e9:.2f} GB of each GPU's memory"
        if found.kv_bytes is not None:
            note += f", which would hold {found.bytes_each // found.kv_bytes:,} tokens of KV cache"
        notes.append(f"{note}.")
    return Section("spare", "Spare slots", finding, tuple(notes), (table,))


def windows(figures: Figures) -> Section:
    """Balancedness against the windows planned for."""
    heading, found = "Windows to plan for", figures.windows
    if isinstance(found, Missing):
        finding = "It is not known how many windows a plan needs"
        return Section("windows", heading, finding, missing=f"{found.why}.")
    (first, low), (last, high) = found.points[0], found.points[-1]
    best, top = max(found.points, key=lambda each: each[1])
    more = top > low + 0.005
    finding = (
        f"A plan made from {counted(best, 'window')} scores {top:.4f} on a window that it did not "
        f"see, and one made from {first} {low:.4f}"
        if more
        else f"One window is enough to plan for: it gives {low:.4f}, and {last} give {high:.4f}"
    )
    how = (
        "each made from the windows just before the one that it is scored on"
        if found.in_order
        else "each for the other windows than the one that it is scored on"
    )
    table = Table(
        "Balancedness by windows planned for",
        ("windows", "balancedness"),
        [(str(number), score(value)) for number, value in found.points],
    )
    return Section(
        "windows",
        heading,
        finding,
        (f"{counted(found.plans, 'plan')} per point, {how}.",),
        (table,),
    )


def moves(figures: Figures) -> Section:
    """Balancedness against moves."""
    heading, found = "Moves", figures.moves
    if isinstance(found, Missing):
        finding = "It is not known what moves would gain"
        return Section("moves", heading, finding, missing=f"{found.why}.")
    last = found.points[-1]
    enough = found.points[found.enough]
    on = "the window seen" if last.unseen is None else "unseen windows"
    finding = (
        f"{enough.moves:,} moves ({percent(enough.share)} of slots) give 90 % of the most that up "
        f"to {last.moves:,} gain on {on}"
        if found.enough
        else "No move gains anything"
    )
    rows = [
        (f"{each.moves:,}", percent(each.share, 1), score(each.seen), score(each.unseen))
        for each in found.points
    ]
    table = Table(
        "Balancedness by moves from the placement that runs",
        ("moves", "of slots", "seen", "unseen"),
        rows,
    )
    note = "A move is an expert of a layer that a GPU receives."
    unseen = "Unseen: plans for the earlier half of the windows, on the later; the same budgets."
    if not figures.setting.ordered:
        unseen = "Unseen: plans for every other workload, on those between; the same budgets."
    notes = (note, unseen) if last.unseen is not None else (note,)
    command = None
    if found.enough and figures.verdict.advised:
        command = (f"Make the plan with {enough.moves:,} moves", printable(found.command))
    return Section("moves", heading, finding, notes, (table,), command=command)


def nodes(figures: Figures) -> list[Section]:
    """Balancedness against the nodes that tokens are sent to; no section where nobody asked."""
    found = figures.nodes
    if found is None:
        return []
    of = {each.name: each for each in (*found.others, *found.priced)}
    now, plans = of["now"], found.priced or found.others[-1:]
    least = max(each.balancedness for each in plans) - _NEAR_BEST
    even = (each for each in plans if each.balancedness >= least)
    best = min(even, key=lambda each: each.other_nodes)
    finding = (
        f"A token is sent to {now.other_nodes:.2f} other nodes now, and to {best.other_nodes:.2f} "
        f"with a plan of balancedness {best.balancedness:.4f}"
    )
    rows = [
        (name, score(each.balancedness), f"{each.other_nodes:.3f}") for name, each in of.items()
    ]
    table = Table(
        "Balancedness and the other nodes of a token",
        ("placement", "balancedness", "other nodes"),
        rows,
    )
    notes = [
        "Other nodes: the distinct nodes beside its own that a token is sent to, as expected, if "
        "copies take the tokens of their own node first; mean over layers.",
        "A price is the peak that it may cost, as a share of the mean GPU load, that a token is "
        "sent to one node fewer (`eplb plan --node-price`). Plans are fast ones, scored on the "
        "windows that they are made from.",
    ]
    if not found.priced:
        notes[1] = "GPUs differ or are dead, so there are no plans at a price of nodes."
    return [Section("nodes", "Nodes", finding, tuple(notes), (table,))]


def through(figures: Figures) -> Section:
    """Drift, and when re-planning would have paid."""
    heading, found = "Through time", figures.through
    if isinstance(found, Missing):
        finding = "It is not known how plans age"
        return Section("through", heading, finding, missing=f"{found.why}.")
    lost = found.replanned_mean - found.kept_mean
    finding = (
        f"A plan kept for {figures.setting.num_windows - found.half:,} windows gave "
        f"{found.kept_mean:.4f}; re-planning gave {found.replanned_mean:.4f}"
    )
    rows = [
        (str(window), score(now), score(replanned), score(kept))
        for window, now, replanned, kept in zip(
            found.windows, found.now, found.replanned, found.kept, strict=True
        )
    ]
    tables = [
        Table(
            "Balancedness through time",
            ("from window", "now", "re-planned", "planned once"),
            rows,
            long=True,
        )
    ]
    notes = [f"Keeping one plan cost {max(lost, 0.0):.4f} of balancedness."]
    if found.per_point > 1:
        notes.append(f"A point is the mean of {found.per_point} windows.")
    if isinstance(found.moments, Missing):
        notes.append(f"It is not known whether re-planning would have paid: {found.moments.why}.")
    else:
        notes.append(_paid(found, found.moments))
        tables.append(
            Table(
                "Whether to move, decided at a few windows",
                ("before window", "decision", "would move", "why"),
                [
                    (str(each.window), each.action, f"{each.moves:,}", each.reason)
                    for each in found.moments
                ],
            )
        )
    return Section("through", heading, finding, tuple(notes), tuple(tables))


def drift(figures: Figures) -> Section:
    """How alike windows are, by their distance."""
    heading, found = "Drift", figures.through
    if isinstance(found, Missing):
        finding = "It is not known how loads drift"
        return Section("drift", heading, finding, missing=f"{found.why}.")
    if not found.drift:
        finding = "Loads are even"
        return Section(
            "drift", heading, finding, missing="They are too even to measure how they drift."
        )
    (near, alike), (far, less) = found.drift[0], found.drift[-1]
    finding = (
        f"The correlation of experts' shares of the tokens is {alike:.3f} at "
        f"{counted(near, 'window')} apart, and {less:.3f} at {far:,}"
    )
    table = Table(
        "How alike windows are",
        ("windows apart", "correlation of experts' shares"),
        [(f"{lag:,}", f"{value:.3f}") for lag, value in found.drift],
    )
    return Section("drift", heading, finding, tables=(table,))


def _paid(found: Through, moments: tuple[Moment, ...]) -> str:
    went = [each for each in moments if each.action != "wait"]
    size = sum(each.total_bytes for each in went) / 1e9
    counts = "transfers alone (--engine adds the engine's own time)"
    if found.engine is not None:
        counts = f"transfers and the own time of {found.engine}"
    line = (
        f"By an estimate of its cost, {counts}, moving would have paid at {len(went)} of "
        f"{counted(len(moments), 'decision')}: {sum(each.moves for each in went):,} moves of "
        f"{size:.3g} GB."
    )
    if found.decided is not None:
        after, before = found.decided
        line += f" Balancedness is {after:.4f} with these moves, and {before:.4f} without."
    return line
