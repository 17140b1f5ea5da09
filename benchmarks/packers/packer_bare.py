"""The limit: the engine's own call on the same strings, in batches; nothing is read or written."""

from __future__ import annotations

from common import BATCH_ROWS, Result, Run, Task, strings

from shardkit.tokens import ENGINES, TEMPLATES, load_tokenizer

label = "bare tokenizer call"
packages = ("tokenizers", "fastokens")


def start(task: Task) -> Run:
    """The engine and all strings, ready."""
    encode = ENGINES[task.engine].make(load_tokenizer(task.tokenizer))
    texts = strings(task.records(), TEMPLATES[task.template])

    def run() -> Result:
        size, n_tokens = 2 * BATCH_ROWS, 0
        for begin in range(0, len(texts), size):
            n_tokens += len(encode(texts[begin : begin + size])[0])
        return Result(len(texts) // 2, n_tokens)

    return run
