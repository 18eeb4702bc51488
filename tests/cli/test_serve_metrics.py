"""`eplb serve-metrics`: a file over HTTP, and a line where it cannot be served."""

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from command_line import run


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60.0) as answer:
        text: str = answer.read().decode()
    return text


def test_it_serves_what_the_file_has_now(tmp_path: Path) -> None:
    file = tmp_path / "eplb.prom"
    with subprocess.Popen(
        [sys.executable, "-m", "eplb", "serve-metrics", str(file), "--port=0", "--host=127.0.0.1"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            with pytest.raises(urllib.error.HTTPError, match="503"):
                get(url)
            for text in ("eplb_ranks_agree 1.0\n", "eplb_ranks_agree 0.0\n"):
                file.write_text(text)
                assert get(url) == text
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(url.removesuffix("metrics"))
        finally:
            process.kill()


def test_a_port_that_is_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve-metrics", tmp_path / "eplb.prom", "--port", port, "--host", "127.0.0.1")
    assert done.returncode == 2
    assert done.stderr.startswith(f"eplb: --port {port} on 127.0.0.1 cannot be served on (")
    assert done.stderr.count("\n") == 1
    done = run("serve-metrics", tmp_path / "eplb.prom", "--port", 70_000)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
