"""Start training scripts on several ranks, as users do."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
LIMIT_S = 900
"""Of one run: only a run that hangs takes so long, also on a busy machine."""
PORTS = range(20_000, 32_000)
"""Below those that the system gives to whoever asks for any (from 32768 on Linux)."""


def free_port() -> int:
    """A port that was free a moment ago, and that nobody gets by chance until it is used.

    Not by the global generator: whoever seeds it for every test would choose one port for all.
    """
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as server, suppress(OSError):
            server.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def environment(**more: str) -> dict[str, str]:
    """This environment, for CPU ranks with one thread each."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        plain.pop(name, None)
    path = f"{BIN}:{plain.get('PATH', '')}"
    return (
        plain
        | {
            "PATH": path,
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            "HF_HUB_OFFLINE": "1",
        }
        | more
    )


def torchrun(n: int, script: Path, *arguments: object) -> list[str]:
    """The command that starts n ranks with torchrun."""
    launch = [str(BIN / "torchrun"), "--standalone", "--nproc_per_node", str(n), str(script)]
    return launch + [str(argument) for argument in arguments]


def deepspeed(n: int, script: Path, *arguments: object) -> list[str]:
    """The command that starts n ranks with the deepspeed launcher."""
    launch = [str(BIN / "deepspeed"), "--num_gpus", str(n), "--master_port", str(free_port())]
    return [*launch, str(script), *(str(argument) for argument in arguments)]


def run(command: list[str], **more: str) -> None:
    """Run a command; fail with the end of its output when it fails."""
    done = subprocess.run(
        command,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def run_as_slurm(n: int, script: Path, *arguments: object) -> None:
    """Start n processes with nothing but the variables that srun sets."""
    port = str(free_port())
    command = [sys.executable, str(script), *(str(argument) for argument in arguments)]
    ranks = [
        subprocess.Popen(
            command,
            env=environment(
                SLURM_PROCID=str(rank),
                SLURM_NTASKS=str(n),
                SLURM_STEP_NUM_TASKS=str(n),
                SLURM_LOCALID=str(rank),
                SLURM_JOB_NODELIST="localhost",
                MASTER_PORT=port,
            ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(n)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, errors[-4000:]


def reports(folder: Path, n: int) -> list[dict[str, Any]]:
    """What each rank wrote."""
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(n)]
