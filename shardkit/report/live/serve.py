"""Serving the pages, on the loopback interface alone."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from shardkit.dataset import Dataset
from shardkit.errors import MissingPackage, UsageError

LOOPBACK = "127.0.0.1"


def serve(
    dataset: Dataset,
    *,
    other: Dataset | None = None,
    sources: list[Path] | None = None,
    port: int = 0,
    on_ready: Callable[[str], None],
) -> None:
    """Serve until interrupted; `on_ready` gets the address, with a token for one browser.

    `port` 0: any free one. `sources`: input files, to show rows as they were. Raises UsageError
    when the port is taken, MissingPackage without starlette and uvicorn.
    """
    try:
        import uvicorn

        from shardkit.report.live.app import Pages, make_app
        from shardkit.report.live.guard import Keys
        from shardkit.report.live.library import Library
        from shardkit.report.live.sources import SourceFiles
    except ModuleNotFoundError as err:
        raise MissingPackage(
            f"shardkit view needs {err.name}", fix='Install it: pip install "shardkit[view]"'
        ) from err
    with socket.socket() as taken, tempfile.TemporaryDirectory() as spool:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((LOOPBACK, port))
        except OSError as err:
            raise UsageError(
                f"port {port} cannot be had: {err.strerror}", fix="Give another --port, or none."
            ) from err
        number = int(taken.getsockname()[1])
        pages = Pages(
            Library(dataset),
            Library(other) if other is not None else None,
            SourceFiles(dataset, sources or [], Path(spool)),
        )
        keys = Keys()
        config = uvicorn.Config(
            make_app(pages, keys, number),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
        )
        taken.listen()
        on_ready(f"http://{LOOPBACK}:{number}/?token={keys.token}")
        uvicorn.Server(config).run(sockets=[taken])
