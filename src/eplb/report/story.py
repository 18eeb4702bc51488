"""What a report says, in words and tables: the same for the page and for the terminal.

Titles state what was found, with its figures. Everything here is plain text.
"""

from dataclasses import dataclass

from eplb.checks import counted, more, printable
from eplb.dispatching.rules import in_words
from eplb.report import sections
from eplb.report.figures import Contender, Figures, Missing
from eplb.report.words import Section, percent, printable_lines


@dataclass(frozen=True)
class Story:
    """A whole report.

    Attributes:
        sentence: the answer; asides: what bounds it.
        facts: the figures of the first screen, name and value.
    """

    title: str
    setting: str
    sentence: str
    asides: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    command: str | None
    compare: str | None
    sections: tuple[Section, ...]


def tell(figures: Figures) -> Story:
    """Say what the figures are; of time, nothing where windows are in no order."""
    in_order = figures.setting.ordered
    return Story(
        title=f"Expert load of {_of(figures)}",
        setting=_setting(figures),
        sentence=_sentence(figures),
        asides=_asides(figures),
        facts=_facts(figures),
        command=None if figures.choice.command is None else printable_lines(figures.choice.command),
        compare=None if figures.choice.compare is None else printable(figures.choice.compare),
        sections=(
            sections.balance(figures),
            sections.heat(figures),
            sections.hot(figures),
            sections.estimated(figures),
            sections.spare(figures),
            sections.windows(figures),
            sections.moves(figures),
            *sections.nodes(figures),
            *([sections.through(figures), sections.drift(figures)] if in_order else ()),
        ),
    )


def _of(figures: Figures) -> str:
    model = figures.setting.model
    trace = printable(figures.setting.trace.rstrip("/").rsplit("/", 1)[-1])
    return f"{printable(model)}, {trace}" if model else trace


def _setting(figures: Figures) -> str:
    at = figures.setting
    moe = at.num_layers - len(at.dense_layers)
    layers = f"{counted(moe, 'expert layer')} of {at.num_experts} experts"
    if at.dense_layers:
        layers += f" (and {len(at.dense_layers)} without load)"
    nodes = f" on {at.num_nodes} nodes" if at.num_nodes > 1 else ""
    names = printable(at.first_window)
    if at.num_windows > 1:
        names += f" to {printable(at.last_window)}"
    groups = f", {at.num_groups} groups" if at.num_groups > 1 else ""
    return (
        f"{layers}{groups}, in {at.num_slots} slots on {at.num_gpus} GPUs{at.uneven}{nodes}; "
        f"{_windows(figures)} ({names})"
        + ("" if at.merged is None else f". {at.merged}")
        + f". {in_words(at.dispatch)}"
    )


def _windows(figures: Figures) -> str:
    at = figures.setting
    if at.ordered:
        return counted(at.num_windows, "window")
    return f"{counted(at.num_windows, 'workload')} in no order"


def _sentence(figures: Figures) -> str:
    """The answer: what to do, what imbalance costs now, what balancing gives, whether it lasts."""
    now, plan = figures.now, figures.plan
    unseen = plan.unseen is not None
    before, after = (_best(now), _best(plan))
    idle = 1.0 - before
    runs = (
        "the placement that runs"
        if figures.setting.current
        else "the layout that engines start with"
    )
    costs = (
        f"With {runs}, up to {percent(idle)} of GPU time in expert layers is spent waiting for the "
        f"busiest GPU (balancedness {before:.4f})"
    )
    where = "on loads not seen" if unseen else "on the one window planned for"
    found = figures.estimated
    time = ""
    if not isinstance(found, Missing):
        gain, over_engine = (
            found.tokens_after / other - 1.0 for other in (found.tokens_before, found.tokens_engine)
        )
        time = (
            f" ({more(gain)} tokens/s by an estimate, and {more(over_engine)} than with the "
            "engine's own)"
        )
    gives = (
        f"{where} the engine's own planner reaches {_best(figures.engine):.4f}, and a plan for "
        f"{figures.setting.num_slots} slots {after:.4f}{time}"
    )
    run = " Run the command below." if figures.choice.command is not None else ""
    return f"{figures.verdict.advice}{run} {costs}; {gives}; {_lasts(figures)}."


def _best(standing: Contender) -> float:
    value = standing.seen if standing.unseen is None else standing.unseen
    return 1.0 if value is None else value


def _lasts(figures: Figures) -> str:
    if figures.plan.unseen is None:
        return "one window cannot show whether that lasts"
    through = figures.through
    if not figures.setting.ordered:
        worst = figures.plan.worst
        workloads = counted(figures.setting.num_windows, "workload")
        least = "" if worst is None else f", and the worst had {worst:.4f}"
        return f"each of {workloads} was held out in turn{least}"
    if isinstance(through, Missing):
        few = f"{counted(figures.setting.num_windows, 'window')} are too few to show if it lasts"
        worst = figures.plan.worst
        return few if worst is None else f"{few}, and the worst unseen window had {worst:.4f}"
    lost = through.replanned_mean - through.kept_mean
    verdict = "it lasts" if lost < 0.02 else "it ages"
    count = figures.setting.num_windows - through.half
    return (
        f"{verdict}: a plan kept for {count:,} windows gave {through.kept_mean:.4f}, and "
        f"re-planning gave {through.replanned_mean:.4f}"
    )


def _asides(figures: Figures) -> tuple[str, ...]:
    lines = [
        figures.verdict.evidence,
        "Balancedness is the mean load of a layer's GPUs divided by the load of its busiest GPU; 1 "
        "is perfect. The other GPUs wait for the busiest one, as far as load determines time.",
        "A slot holds one copy of one expert. A window is the tokens that each expert got in a "
        "stretch of time. Contiguous is the layout that engines start with: experts in order.",
    ]
    if figures.plan.unseen is None:
        lines.append(
            "The trace has one window, so the plan cannot be scored on loads that it has not seen."
        )
    elif not figures.setting.ordered:
        every = figures.setting.every
        turn = "each is held out in turn" if every == 1 else f"{every} at a time are held out"
        lines.append(
            f"These are {_windows(figures)}, as the names of their files tell none: {turn} and "
            "scored by a plan for the others. What a plan gives through time they cannot show; if "
            "they follow each other, give the files in their order."
        )
    else:
        lines.append(
            f"Unseen: each of the {counted(figures.unseen_windows, 'window')} after the first is "
            "scored by a plan made from the windows before it"
            + (
                "."
                if figures.setting.every == 1
                else f", with a new plan every {figures.setting.every} windows."
            )
        )
    if figures.plan.unseen is not None and figures.unsure:
        lines.append(f"There are no intervals: {figures.unsure}.")
    if not isinstance(figures.estimated, Missing):
        lines.append(
            f"Tokens/s are an estimate for {figures.estimated.model} on {figures.estimated.gpu}; "
            "its assumptions are under “Estimated time”."
        )
    return tuple(lines)


def _facts(figures: Figures) -> tuple[tuple[str, str], ...]:
    now, plan = figures.now, figures.plan
    oracle = figures.standing("oracle")
    kind = "unseen loads" if plan.unseen is not None else "the window seen"
    facts = [
        (f"now, on {kind}", f"{_best(now):.4f}"),
        ("the engine's own planner", f"{_best(figures.engine):.4f}"),
        (f"planned, on {kind}", f"{_best(plan):.4f}"),
    ]
    if oracle is not None:
        facts.append(("perfect foresight", f"{_best(oracle):.4f}"))
    found = figures.estimated
    if not isinstance(found, Missing):
        facts.append(
            ("estimated tokens/s", f"{found.tokens_before:,.0f} → {found.tokens_after:,.0f}")
        )
    return tuple(facts)
