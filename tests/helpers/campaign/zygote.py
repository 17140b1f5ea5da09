"""A process with shardkit imported that forks one for each command: starting one takes 10 ms.

Reads a JSON request a line on standard input and answers each by a line. It has no threads, so
that forking is safe. What it forks leads a session of its own and runs the command line.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import sys
import time
import traceback
from typing import Any

PRELOAD = (
    "torch",
    "transformers",
    "shardkit.loader",
    "shardkit.builder",
    "shardkit.check",
    "shardkit.report",
    "shardkit_cli.main",
)
SMALL_RANGES = "--small-ranges"
"""Before a command: inputs of any size are scanned by workers, in ranges of 3 kB."""
CAPABILITIES_3 = 0x20080522
RIGHTS_OF_ROOT = 0b111
"""CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: without them root obeys a file's mode."""


def main() -> None:
    """Answer requests until standard input ends."""
    for name in PRELOAD:
        importlib.import_module(name)
    importlib.import_module("transformers").AutoTokenizer  # noqa: B018 - it is imported lazily
    statuses: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "argv" in request:
            answer: Any = _start(**request)
            statuses.pop(answer, None)  # numbers of processes come again
        else:
            answer = _wait(request["pid"], request["seconds"], statuses)
        print(json.dumps(answer), flush=True)


def _start(argv: list[str], log: str, limits: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _limit(**limits)
        status = run_main(argv)
    finally:
        os._exit(status)


def run_main(argv: list[str]) -> int:
    """The exit status of the command line; an exception that comes out of it is printed."""
    from shardkit_cli.main import main as shardkit

    if argv[:1] == [SMALL_RANGES]:
        argv = argv[1:]
        vars(importlib.import_module("shardkit.builder.build"))["SCAN_BYTES"] = 0
        vars(importlib.import_module("shardkit.builder.scanning"))["RANGE_BYTES"] = 3000
    if argv[:1] == ["--soak"]:
        argv, shardkit = argv[1:], importlib.import_module("campaign.soak_rank").main
    try:
        return int(shardkit(argv))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()


def _limit(environment: dict[str, str], n_files: int | None, without_rights: bool) -> None:
    os.environ.update(environment)
    resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
    if without_rights:
        header = (ctypes.c_uint32 * 2)(CAPABILITIES_3, 0)
        data = (ctypes.c_uint32 * 6)()
        libc = ctypes.CDLL(None, use_errno=True)
        libc.capget(header, data)
        for i in (0, 1):  # effective and permitted, of the first 32
            data[i] &= ~RIGHTS_OF_ROOT
        if libc.capset(header, data):
            raise OSError(ctypes.get_errno(), "capset")
    if n_files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (n_files, n_files))


def _wait(pid: int, seconds: float, statuses: dict[int, int]) -> int | None:
    """The exit status, minus a signal; None when it still runs after so many seconds."""
    end = time.monotonic() + seconds
    while pid not in statuses:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            statuses[pid] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() >= end:
            return None
        else:
            time.sleep(min(0.001, max(0.0, end - time.monotonic())))
    return statuses[pid]


if __name__ == "__main__":
    main()
