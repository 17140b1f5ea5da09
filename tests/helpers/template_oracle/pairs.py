"""Pairs of answers against TRL's own code: its DPOTrainer prepares the rows, without a model."""

from __future__ import annotations

import datetime
import importlib
from types import SimpleNamespace
from typing import Any

from shardkit.sources import SOURCES, ReadOptions
from shardkit.tokens import ChatTemplate, Encoder, load_tokenizer
from template_oracle.rows import answer, user

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""For tokenizers without a template, in which no marker is a token: it merges with its text."""


def pairs() -> list[dict[str, Any]]:
    """Rows as TRL documents them: a prompt, and two lists of messages."""
    rows = []
    for i in range(12):
        talk = [user(f"Question {i}?")]
        if i % 3 == 1:
            talk = [{"role": "system", "content": "Be brief."}, *talk]
        if i % 3 == 2:
            talk += [answer("What do you mean?"), user("Well, é " + "so " * i)]
        good, bad = [answer("It is 😀 " + "yes " * (i + 1))], [answer("\nNo, not " + "that " * 3)]
        if i % 4 == 3:
            bad += [user("Really?"), answer("Hm.")]
        rows.append({"prompt": talk, "chosen": good, "rejected": bad})
    return rows


def differing_pairs(hf: Any, rows: list[dict[str, Any]]) -> list[str]:
    """What of the rows, beside a prompt and as whole conversations, has other ids or labels."""
    if hf.chat_template is None:
        hf.chat_template = CHATML
    tokenizer = load_tokenizer(hf)
    date = datetime.date.today().isoformat() if "strftime_now" in hf.chat_template else None
    template = ChatTemplate.of_tokenizer(tokenizer, date=date)
    encoder = Encoder(tokenizer, template, max_length=None, task="preference")
    sides = ("chosen", "rejected")
    whole = [{side: row["prompt"] + row[side] for side in sides} for row in rows]
    return [
        f"{kind}, row {i}: {problem}"
        for kind, some in (("beside a prompt", rows), ("whole", whole))
        for i, problem in _differing(encoder, some, _prepared(hf, some))
    ]


def _differing(
    encoder: Encoder, rows: list[dict[str, Any]], prepared: Any
) -> list[tuple[int, str]]:
    read: Any = [SOURCES["chat"].read(row, ReadOptions(task="preference")) for row in rows]
    encoded = encoder.encode(read)
    found = [(i, reject.detail) for i, reject in encoded.rejects]
    samples, segments = encoded.samples, encoded.samples.segments
    assert segments is not None
    starts = samples.starts[segments["sample"]] + segments["start"]
    ends = starts + segments["length"]
    theirs = list(prepared)
    for place, i in enumerate(encoded.kept.tolist()):
        prompt = theirs[i]["prompt_ids"]
        for k, side in enumerate(("chosen_ids", "rejected_ids")):
            part = slice(starts[2 * place + k], ends[2 * place + k])
            if samples.ids[part].tolist() != prompt + theirs[i][side]:
                found.append((i, f"other {side}"))
            if samples.labels[part].tolist() != [-100] * len(prompt) + theirs[i][side]:
                found.append((i, f"other labels of {side}"))
    return found


def _prepared(hf: Any, rows: list[dict[str, Any]]) -> Any:
    """The rows as DPOTrainer prepares them.

    A stream of them: `datasets` would hash the tokenizer for each step over a table.
    """
    trl, datasets = importlib.import_module("trl"), importlib.import_module("datasets")
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    arguments = SimpleNamespace(
        max_length=None, truncation_mode="keep_start", dataset_num_proc=None
    )
    trainer = SimpleNamespace(_tokenizer=hf)
    return trl.DPOTrainer._prepare_dataset(trainer, stream, hf, arguments, "train")
