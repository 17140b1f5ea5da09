"""shardkit.pack: JSON in, shards and manifest out, flushed to the disk."""

from __future__ import annotations

import time
from typing import Any

from common import MAX_LENGTH, Result, Run, Task

from shardkit import pack
from shardkit.builder.part import PartBuilder
from shardkit.tokens import load_tokenizer

label = "shardkit"
packages = ("tokenizers", "fastokens")


def start(task: Task) -> Run:
    """The tokenizer, loaded and hashed; what one worker loads is taken off."""
    tokenizer = load_tokenizer(task.tokenizer)
    _ = tokenizer.identity
    options: dict[str, Any] = {
        "tokenizer": tokenizer, "template": task.template,
        "max_length": MAX_LENGTH, "engine": task.engine, "packing": task.packing,
    }  # fmt: skip
    idle = [0.0, 0.0]
    if task.workers == 1:
        _time_engine(idle)

    def run() -> Result:
        made = pack(task.source, task.folder / "data", workers=task.workers, **options)
        assert made is not None
        assert made.engine == task.engine, made.engine
        return Result(sum(source.n_rows for source in made.sources), made.n_tokens, *idle)

    return run


def _time_engine(idle: list[float]) -> None:
    """Have the one process add up how long it makes its engine."""
    make = PartBuilder.__post_init__

    def timed(builder: PartBuilder) -> None:
        begun, cpu = time.perf_counter(), time.process_time()
        make(builder)
        idle[0] += time.perf_counter() - begun
        idle[1] += time.process_time() - cpu

    PartBuilder.__post_init__ = timed  # type: ignore[method-assign]
