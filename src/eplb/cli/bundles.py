"""Options that travel together, what a command takes as one dataclass; and values that complete."""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer


def beginning(names: Iterable[str]) -> Callable[[str], list[str]]:
    """What a shell completes a value to: of these names, those that begin with it."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def one_of(names: Iterable[str], words: str, *flags: str) -> Any:
    """An option for one of some names, which stand in the place of `{}` in its help."""
    return typer.Option(
        *flags, autocompletion=beginning(names), help=words.format(", ".join(names))
    )


def taken_apart(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of what it takes as a dataclass, and of dataclasses
    in it. The help of an option is what docstrings say of it, under "Options:" or "Attributes:".
    """
    hints, helps = get_type_hints(command, include_extras=True), _helps_of(command)
    bundles = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in bundles:
            parameters += _options_of(bundles[name])
        else:
            hint = _with_help(hints[name], helps.get(name))
            parameters.append(parameter.replace(annotation=hint, kind=_NAMED))

    def run(**given: Any) -> None:
        for name, bundle in bundles.items():
            given[name] = _put_together(bundle, given)
        command(**given)

    run.__doc__ = inspect.cleandoc(command.__doc__ or "").partition("\n\nOptions:\n")[0]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


_NAMED = inspect.Parameter.KEYWORD_ONLY


def _options_of(bundle: Any) -> Iterator[inspect.Parameter]:
    hints, helps = get_type_hints(bundle, include_extras=True), _helps_of(bundle)
    for each in fields(bundle):
        hint = hints[each.name]
        if is_dataclass(hint):
            yield from _options_of(hint)
            continue
        default = inspect.Parameter.empty if each.default is MISSING else each.default
        hint = _with_help(hint, helps.get(each.name))
        yield inspect.Parameter(each.name, _NAMED, default=default, annotation=hint)


def _with_help(hint: Any, words: str | None) -> Any:
    if words is None:
        return hint
    plain, option = hint, typer.Option()
    if hasattr(hint, "__metadata__"):
        plain, option = hint.__origin__, copy(hint.__metadata__[-1])
    option.help = words
    return Annotated[plain, option]


def _helps_of(documented: Any) -> dict[str, str]:
    """What the docstring of a command says of its options, or those of a dataclass and of what it
    extends of their attributes.
    """
    helps = {}
    for each in reversed(getattr(documented, "__mro__", (documented,))):
        text = re.split(r"\n(?:Options|Attributes):\n", inspect.cleandoc(each.__doc__ or ""))[-1]
        for name, words in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE):
            helps[name] = " ".join(words.split())
    return helps


def _put_together(bundle: Any, given: dict[str, Any]) -> Any:
    """A dataclass of what is given, which is taken away."""
    values = {}
    for name, hint in get_type_hints(bundle).items():
        values[name] = _put_together(hint, given) if is_dataclass(hint) else given.pop(name)
    return bundle(**values)
