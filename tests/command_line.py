"""The `eplb` command for tests: in this process, where kernels are loaded, or in one of its own.

Scripts of bench/ run in processes of their own.
"""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from recorded import ROOT

from eplb import cli

__all__ = ["run", "run_process", "run_script"]

_WIDTH = {"COLUMNS": "100"}


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """What the command does with these arguments, all but starting a process."""
    command = ["eplb", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", command),
        # As by the script `eplb`, whatever module pytest was started by.
        mock.patch.object(sys.modules["__main__"], "__package__", None),
        mock.patch.dict(os.environ, {**_WIDTH, **environment}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as done:
            code = 0 if done.code is None else int(done.code)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def run_process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command of this environment, as a shell would run it."""
    command = [sys.executable, "-m", "eplb.cli", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, **_WIDTH, **environment},
    )


def run_script(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A script of bench/, in a folder."""
    return subprocess.run(
        [sys.executable, str(ROOT / "bench" / script), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
