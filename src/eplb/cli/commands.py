"""The commands by name, in the order in which a user meets them, each with an example."""

import re
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from eplb import __version__
from eplb.cli import (
    compare,
    convert,
    decide,
    demo,
    doctor,
    evaluate,
    frontier,
    inspect,
    migrate,
    plan,
    report,
    serve_metrics,
    size,
    sweep,
    synthesize,
    watch,
)
from eplb.cli.bundles import taken_apart


@dataclass(frozen=True)
class Command:
    """A command of the story.

    Attributes:
        module: that has it, of its name.
        does: in a few words, for the list of commands.
        example: of a command line; a line ends with a backslash where it goes on.
    """

    module: ModuleType
    does: str
    example: str


STORY: dict[str, dict[str, Command]] = {
    "See what it is about": {
        "demo": Command(demo, "Show what balancing gains; no file is needed.", "eplb demo"),
        "synthesize": Command(
            synthesize,
            "Make loads that behave like a model's.",
            "eplb synthesize deepseek-v3 loads.npz --windows 32",
        ),
    },
    "Look at your loads": {
        "inspect": Command(
            inspect, "Describe loads: shape, skew, drift.", "eplb inspect loads.json"
        ),
        "convert": Command(
            convert, "Write loads in another format.", "eplb convert dumps/ loads.npz"
        ),
        "report": Command(
            report,
            "Say what imbalance costs, and what to do.",
            "eplb report loads.json --gpus 32 --slots 288 --text",
        ),
    },
    "Plan": {
        "plan": Command(
            plan,
            "Plan a placement, and write it for an engine.",
            "eplb plan loads.json --gpus 32 --slots 288 -o placement.json",
        ),
        "evaluate": Command(
            evaluate,
            "Score a placement on loads.",
            "eplb evaluate placement.json loads.json --gpus 32",
        ),
        "compare": Command(
            compare,
            "Replay planners side by side on a trace.",
            "eplb compare trace.npz --gpus 32 --policy deepseek,eplb",
        ),
        "sweep": Command(
            sweep,
            "Replay planners on many cluster sizes.",
            "eplb sweep trace.npz --gpus 32,64 --spare 1,2 --policy eplb",
        ),
        "size": Command(
            size,
            "Say how many spare slots to buy.",
            "eplb size trace.npz --gpus 32 --dispatch best --model DeepSeek-V3",
        ),
    },
    "Move": {
        "frontier": Command(
            frontier,
            "Show what each number of moves gains.",
            "eplb frontier later.json --gpus 32 --current placement.json",
        ),
        "decide": Command(
            decide,
            "Decide whether moving now pays.",
            "eplb decide later.json --gpus 32 --current placement.json \\\n"
            "    --seconds 60 --model DeepSeek-V3 --gpu H200",
        ),
        "migrate": Command(
            migrate,
            "Order the transfers between two placements.",
            "eplb migrate placement.json next.json --gpus 32 \\\n"
            "    --model DeepSeek-V3 --gpu H200",
        ),
    },
    "Run it in an engine": {
        "doctor": Command(
            doctor, "Check that hosts are fit for it, and alike.", "eplb doctor --json > host1.json"
        ),
        "watch": Command(
            watch,
            "Show how GPUs are loaded now, live.",
            "eplb watch /var/loads/58x256 --gpus 32 --placement placement.json",
        ),
        "serve-metrics": Command(
            serve_metrics,
            "Serve what a plug-in counts, for Prometheus.",
            "eplb serve-metrics /run/eplb.prom --port 9464",
        ),
    },
}
"""The commands under the headings of `eplb --help`."""


_HYPHEN, _UNBROKEN = re.compile(r"(?<=\w)-(?=\w)"), "\u2011"


class _Story(TyperGroup):
    """Commands under headings, none cut short."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the story."""
        del ctx
        return [name for commands in STORY.values() for name in commands]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the headings and what stands under each."""
        del ctx
        for heading, commands in STORY.items():
            with formatter.section(heading):
                formatter.write_dl([(name, each.does) for name, each in commands.items()])


class _Command(TyperCommand):
    """A command whose help breaks no name at its hyphens."""

    params: Any

    def get_help(self, ctx: Any) -> str:
        """The help of the command."""
        said = [(param, param.help) for param in self.params if getattr(param, "help", None)]
        for param, words in said:
            param.help = _HYPHEN.sub(_UNBROKEN, words)
        try:
            return str(super().get_help(ctx)).replace(_UNBROKEN, "-")
        finally:
            for param, words in said:
                param.help = words


app = typer.Typer(
    name="eplb",
    cls=_Story,
    help="Expert Parallelism Load Balancer for mixture-of-experts inference.",
    epilog="Begin with `eplb demo`. `eplb COMMAND --help` has an example of each command.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _commands in STORY.values():
    for _name, _each in _commands.items():
        _example = _each.example.replace("\n", "\n  ")
        app.command(_name, cls=_Command, epilog=f"Example:\n\n\b\n  {_example}")(
            taken_apart(_each.module.command)
        )


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"eplb {__version__}")
        raise typer.Exit


@app.callback()
def _eplb(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    pass
