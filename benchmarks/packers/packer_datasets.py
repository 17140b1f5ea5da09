"""datasets.map, as XTuner 0.1 uses it: record, template and tokenizer row by row, then saved."""

from __future__ import annotations

from typing import Any

from common import MAX_LENGTH, Result, Run, Task
from datasets import Dataset, disable_progress_bars
from transformers import AutoTokenizer

from shardkit.tokens import TEMPLATES

label = "datasets.map, as XTuner"
packages = ("datasets", "transformers")
engines = ("hf",)


def start(task: Task) -> Run:
    """The transformers tokenizer, loaded."""
    tokenizer = AutoTokenizer.from_pretrained(task.tokenizer)
    template = TEMPLATES[task.template]
    bos = (
        []
        if tokenizer.bos_token_id is None or "qwen" in task.template
        else [tokenizer.bos_token_id]
    )

    def conversation(row: dict[str, Any]) -> dict[str, Any]:
        if row["output"] == "<nooutput>":
            return {"conversation": []}
        turn = {"input": f"{row['instruction']}\n{row['input']}", "output": row["output"]}
        return {"conversation": [turn]}

    def templated(row: dict[str, Any]) -> dict[str, Any]:
        for i, turn in enumerate(row["conversation"]):
            turn["input"] = template.instruction.format(input=turn["input"], round=i + 1)
            turn["output"] += template.suffix
        return {"conversation": row["conversation"]}

    def tokenized(row: dict[str, Any]) -> dict[str, Any]:
        ids, labels = list[int](), list[int]()
        for turn in row["conversation"]:
            question = bos + tokenizer.encode(turn["input"], add_special_tokens=False)
            answer = tokenizer.encode(turn["output"], add_special_tokens=False)
            if not template.suffix_as_eos:
                answer = [*answer, tokenizer.eos_token_id]
            after = tokenizer.encode(template.sep, add_special_tokens=False) if template.sep else []
            ids += [*question, *answer, *after]
            labels += [-100] * len(question) + answer + [-100] * len(after)
        return {"input_ids": ids[:MAX_LENGTH], "labels": labels[:MAX_LENGTH]}

    def run() -> Result:
        disable_progress_bars()
        n = {"num_proc": task.workers if task.workers > 1 else None}
        rows = Dataset.from_list(task.records())
        n_rows = len(rows)
        rows = rows.map(conversation, **n).map(templated, **n)
        rows = rows.filter(lambda row: len(row["conversation"]) > 0, **n)
        rows = rows.map(tokenized, remove_columns=rows.column_names, **n)
        rows = rows.filter(lambda row: any(label >= 0 for label in row["labels"]), **n)
        rows = rows.add_column("length", [len(ids) for ids in rows["input_ids"]])
        rows.save_to_disk(task.folder / "data")
        return Result(n_rows, sum(rows["length"]))

    return run
