"""Options that travel together, what a command takes as one dataclass; and values that complete."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

__all__ = ["beginning", "taken_apart"]


def beginning(names: Iterable[str]) -> Callable[[str], list[str]]:
    """What a shell completes a value to: of these names, those that begin with it."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def taken_apart(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of what it takes as a dataclass."""
    parameters: list[inspect.Parameter] = []
    bundles: dict[str, Any] = {}
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        hint = hints[name]
        if not is_dataclass(hint):
            parameters.append(parameter.replace(annotation=hint, kind=parameter.KEYWORD_ONLY))
            continue
        bundles[name] = hint
        of_fields = get_type_hints(hint, include_extras=True)
        for each in fields(hint):
            default = parameter.empty if each.default is MISSING else each.default
            parameters.append(
                inspect.Parameter(
                    each.name,
                    parameter.KEYWORD_ONLY,
                    default=default,
                    annotation=of_fields[each.name],
                )
            )

    def run(**given: Any) -> None:
        for name, bundle in bundles.items():
            given[name] = bundle(**{each.name: given.pop(each.name) for each in fields(bundle)})
        command(**given)

    run.__doc__ = command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run
