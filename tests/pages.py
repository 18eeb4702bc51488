"""Pages of documentation as steps: commands and Python, in order, and what they are shown to print.

What a page may have for this, as comments that no reader sees:

    <!-- first: COMMAND -->        run here, to make what the next blocks read
    <!-- not run: REASON -->       above a block that needs what a test has not
"""

import ast
import re
import textwrap
import tokenize
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Step", "alike", "run_python", "steps_of"]

SHELL = ("bash", "sh", "shell")
_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[\w-]*) *$")
_COMMENT = re.compile(r"^ *<!-- (first|not run): (.+) -->$")


@dataclass(frozen=True)
class Step:
    """One thing to run.

    Attributes:
        line: where it stands in the page, from 1.
        kind: "shell" or "python".
        text: what to run.
        shown: what the page says that it prints, or None.
        not_run: why a test cannot run it, or None.
    """

    line: int
    kind: str
    text: str
    shown: str | None = None
    not_run: str | None = None


def steps_of(page: str) -> list[Step]:
    """What a page has to run, in its order."""
    steps: list[Step] = []
    lines = page.splitlines()
    reason: str | None = None
    after_python = False
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        fence = _FENCE.match(line)
        if comment := _COMMENT.match(line):
            if comment[1] == "first":
                steps.append(Step(at, "shell", comment[2]))
            else:
                reason = comment[2]
        elif fence:
            begin, end = at, at
            while lines[end].strip() != fence["ticks"]:
                end += 1
            text = textwrap.dedent("\n".join(lines[begin:end])) + "\n"
            if fence["language"] == "text" and after_python:
                steps[-1] = Step(steps[-1].line, "python", steps[-1].text, text)
            steps.extend(_of_block(fence["language"], text, begin + 1, reason))
            at, reason = end + 1, None
            after_python = fence["language"] == "python"
        elif line.strip():
            if reason is not None:
                raise ValueError(f"line {at}: {reason!r} stands above no block")
            after_python = False
    return steps


def _of_block(language: str, text: str, line: int, reason: str | None) -> Iterator[Step]:
    if language == "python":
        yield Step(line, "python", text, not_run=reason)
    elif language in SHELL:
        yield Step(line, "shell", text, not_run=reason)
    elif language == "console":
        # The first piece is what stands before any command: nothing.
        pieces = re.split(r"^\$ ", text, flags=re.MULTILINE)
        for piece in pieces[1:]:
            command, shown = _parted(piece)
            yield Step(line, "shell", command, shown or None, reason)
            line += piece.count("\n")
    elif re.search(r"^(\$ |eplb |pip |python |make )", text, flags=re.MULTILINE):
        raise ValueError(f"line {line}: a block with commands says no language")


def _parted(piece: str) -> tuple[str, str]:
    lines = piece.splitlines(keepends=True)
    last = next(at for at, line in enumerate(lines) if not line.endswith("\\\n"))
    return "".join(lines[: last + 1]).strip(), "".join(lines[last + 1 :])


def alike(shown: str, printed: str) -> str | None:
    """How what was printed is unlike what a page shows; None if it is like it.

    Words are compared, with any figure for any other, however lines are broken and columns aligned.
    `...`, a word by itself, stands for anything.
    """
    found = f" {_plain(printed)} "
    parts = [f" {part.strip()} " for part in f" {_plain(shown)} ".split(" ... ")]
    if parts[0].strip() and not found.startswith(parts[0]):
        return f"no {parts[0].strip()!r} at the beginning:\n{printed}"
    at = 0
    for part in parts:
        if part.strip():
            at = found.find(part, at)
            if at < 0:
                return f"no {part.strip()!r} where it is shown:\n{printed}"
            at += len(part) - 1
    if parts[-1].strip() and not found.endswith(parts[-1]):
        return f"more than is shown:\n{printed}"
    return None


def _plain(text: str) -> str:
    text = re.sub(r"[\u2500-\u257f]+|-{3,}|={3,}", " ", text.replace("…", "..."))
    text = re.sub(r"\d[\d,]*(\.\d+)?(e[+-]?\d+)?", "0", text)
    return " ".join(text.split())


def run_python(step: Step, names: dict[str, Any], page: str) -> str:
    """Run a block of Python in the names of its page; what it printed.

    A comment behind a value says its shape, `# [58, 288] ...`, or its value, `# 0.9996`,
    `# "recent": ...`, and is to be true; of a number, to the digits that it has, and of several
    values, of the first.

    Raises:
        AssertionError: a comment that is not.
    """
    tree = ast.parse("\n" * (step.line - 1) + step.text)
    reader = StringIO("\n" * (step.line - 1) + step.text).readline
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(reader)
        if token.type == tokenize.COMMENT
    }
    with redirect_stdout(StringIO()) as printed:
        for statement in tree.body:
            said = comments.get(statement.end_lineno or 0, "")
            target: ast.expr | None = None
            if isinstance(statement, ast.Expr):
                target = statement.value
            else:
                exec(compile(ast.Module([statement], []), page, "exec"), names)
                if isinstance(statement, ast.Assign):
                    target = statement.targets[0]
            if target is None:
                continue
            if isinstance(statement, ast.Expr):
                value = eval(compile(ast.Expression(target), page, "eval"), names)
            else:
                value = eval(ast.unparse(target), names)
            _check(said, value, f"{page}:{statement.lineno}: {ast.unparse(target)}")
    return printed.getvalue()


def _check(said: str, value: Any, where: str) -> None:
    if shape := re.match(r"\[([\w, ]+)\]", said):
        for each in value if isinstance(value, tuple) else (value,):
            found = np.shape(each)
            wanted = [part.strip() for part in shape[1].split(",")]
            same = len(found) == len(wanted) and all(
                not want.isdigit() or int(want) == has
                for want, has in zip(wanted, found, strict=True)
            )
            assert same, f"{where} has the shape {list(found)}, not [{shape[1]}]"
        return
    value = value[0] if isinstance(value, tuple) else value
    if number := re.match(r"-?\d+(?:\.(\d+))?(?=$|[:,] )", said):
        digits = len(number[1] or "")
        assert round(float(value), digits) == float(number[0]), f"{where} is {value}"
    elif text := re.match(r'"([^"]*)"', said):
        assert value == text[1], f"{where} is {value!r}"


def read(path: Path) -> list[Step]:
    """The steps of a file; errors name it."""
    try:
        return steps_of(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
