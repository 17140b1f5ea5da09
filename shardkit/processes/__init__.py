"""Worker processes: spawned, or forked from a process that does nothing else."""

from shardkit.processes.forked import ForkPool, can_fork, fork_no_more, this_is_a_command
from shardkit.processes.spawned import (
    WorkerPool,
    end_with_parent,
    n_cores,
    sigint_held,
    sigint_let_go,
)

__all__ = [
    "ForkPool",
    "WorkerPool",
    "can_fork",
    "end_with_parent",
    "fork_no_more",
    "n_cores",
    "sigint_held",
    "sigint_let_go",
    "this_is_a_command",
]
