"""`eplb doctor`: whether a host is fit to plan in an engine, and what hosts have that differs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eplb.cli.options import AsJson
from eplb.cli.terminal import print_facts, print_json, say
from eplb.engines.doctor import differences, examine, problems, read_facts


def command(
    outputs: Annotated[list[Path] | None, typer.Argument(metavar="OUTPUTS")] = None,
    as_json: AsJson = False,
) -> None:
    """Check that a host is fit to plan in an engine, or say what differs between hosts.

    Run it with the Python, the user and the variables that the engine has. It exits with 1 if
    something is wrong, or if hosts differ where they must not.

    Options:
        outputs: What `eplb doctor --json` printed on several hosts, to be compared; this host where
            none is given.
    """
    if not outputs:
        facts = examine()
        wrong = problems(facts)
        if as_json:
            print_json({**facts, "problems": wrong})
        else:
            print_facts(Console(), facts)
            for line in wrong or ["Nothing is wrong."]:
                say(line)
        raise typer.Exit(int(bool(wrong)))
    hosts = [facts for path in outputs for facts in read_facts(path)]
    found = differences(hosts)
    if as_json:
        print_json({"hosts": len(hosts), "differences": [line for line, _ in found]})
    else:
        for line, must in found:
            say(f"{line}{': they must be the same' if must else ''}")
        if not any(must for _, must in found):
            say(f"The {len(hosts)} hosts plan alike.")
    raise typer.Exit(int(any(must for _, must in found)))
