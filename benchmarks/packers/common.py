"""What every packer is given, and the strings and samples that they share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.conversation import Reject
from shardkit.sources import SOURCES, ReadOptions
from shardkit.tokens import Encoder, Template, Tokenizer, load_template, load_tokenizer

MAX_LENGTH = 2048
BATCH_ROWS = 2048


@dataclass(frozen=True)
class Task:
    """One run of one contender."""

    source: Path
    """A JSON array of Alpaca records."""
    tokenizer: Path
    template: str
    engine: Any
    workers: int
    packing: Any
    folder: Path
    """New, to write into."""

    def records(self) -> list[dict[str, str]]:
        """The records, parsed."""
        rows: list[dict[str, str]] = json.loads(self.source.read_text())
        return rows


@dataclass(frozen=True)
class Result:
    """What a run made; `idle_s` and `idle_cpu_s` are start-up within it, to be taken off."""

    n_rows: int
    n_tokens: int
    idle_s: float = 0.0
    idle_cpu_s: float = 0.0


Run = Callable[[], Result]
Sample = tuple[NDArray[np.int32], NDArray[np.int32]]


def load(task: Task) -> tuple[Tokenizer, Encoder]:
    """The tokenizer and shardkit's encoder, ready."""
    tokenizer = load_tokenizer(task.tokenizer)
    template = load_template(task.template, tokenizer)
    return tokenizer, Encoder(tokenizer, template, max_length=MAX_LENGTH, engine=task.engine)


def samples(encoder: Encoder, records: list[dict[str, str]]) -> Iterator[Sample]:
    """The encode function that rival writers are fed by: (ids, labels) of each record."""
    for begin in range(0, len(records), BATCH_ROWS):
        found = SOURCES["alpaca"].read_all(records[begin : begin + BATCH_ROWS], ReadOptions())
        made = encoder.encode([one for one in found if not isinstance(one, Reject)]).samples
        for a, b in pairwise(made.starts.tolist()):
            yield made.ids[a:b], made.labels[a:b]


def strings(records: list[dict[str, str]], template: Template) -> list[str]:
    """Every string that is encoded: question and answer, the template around them."""
    texts = []
    for record in records:
        if record["output"] != "<nooutput>":
            words = f"{record['instruction']}\n{record['input']}"
            texts.append(template.instruction.format(input=words, round=1))
            texts.append(record["output"] + template.suffix)
    return texts
