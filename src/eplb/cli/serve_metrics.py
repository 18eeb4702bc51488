"""`eplb serve-metrics`: a file of metrics, for Prometheus to scrape."""

import http.server
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eplb.checks import in_one_line, whole_number
from eplb.errors import OptionError

_MOST_PORT = 65535


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    port: int = 9464,
    host: str = "0.0.0.0",
) -> None:
    """Serve a plug-in's metrics at /metrics, where the engine's own server does not. Ctrl-C ends
    it. While the file is not there, scrapes get an error, and serving goes on.

    Options:
        file: The file that EPLB_METRICS names.
        port: Port to serve on; 0 for any that is free.
        host: Address to serve on.
    """
    whole_number(port, "--port", least=0, most=_MOST_PORT)
    try:
        server = http.server.ThreadingHTTPServer((host, port), _handler(file))
    except OSError as error:
        raise OptionError(
            f"--port {port} on {host} cannot be served on ({in_one_line(error)}): give another"
        ) from None
    with server:
        address = f"http://{host}:{server.server_port}/metrics"
        Console(highlight=False, soft_wrap=True).print(f"{file} is served at {address}")
        server.serve_forever()


def _handler(file: Path) -> type[http.server.BaseHTTPRequestHandler]:
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, text = 200, b""
            if self.path.partition("?")[0] != "/metrics":
                code, text = 404, b"give /metrics\n"
            else:
                try:
                    text = file.read_bytes()
                except OSError as error:
                    code, text = 503, f"{file}: {in_one_line(error)}\n".encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None: ...

    return Answers
