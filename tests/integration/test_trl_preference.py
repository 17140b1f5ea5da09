"""TRL's preference trainers: our tokens are theirs, and so are the losses of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from records import TOKENIZER
from tiny_models import tiny_llama
from transformers import AutoTokenizer
from trl_runs import short_run

from shardkit import ShardLoader, ShardTable, pack
from shardkit.errors import UsageError
from shardkit.integrations.hf_export import export_hf

trl = pytest.importorskip("trl", reason="TRL is not installed")
datasets = pytest.importorskip("datasets", reason="datasets is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


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


def labelled() -> list[dict[str, Any]]:
    rows = []
    for i, row in enumerate(pairs()):
        side = "chosen" if i % 2 else "rejected"
        rows.append({"prompt": row["prompt"], "completion": row[side], "label": bool(i % 2)})
    return rows


def packed(folder: Path, rows: list[dict[str, Any]], task: Any, **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pack(path, folder / "out", tokenizer=TOKENIZER, task=task, **more)
    return folder / "out"


def config(kind: Any, folder: Path, **more: Any) -> Any:
    return short_run(kind, folder, **{"gradient_checkpointing": False} | more)


def trained(kind: Any, arguments: Any, train: Any, **more: Any) -> Any:
    """A trainer of a tiny model, after its run."""
    model, reference = tiny_llama(), tiny_llama()
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    trainer = kind(
        model, reference, args=arguments, train_dataset=train, processing_class=tokenizer, **more
    )
    trainer.train()
    return trainer


def logged(trainer: Any, name: str = "loss") -> list[float]:
    return [log[name] for log in trainer.state.log_history if name in log]


def test_pairs_have_trls_tokens_and_losses(tmp_path: Path) -> None:
    """DPOTrainer on the rows, and on what was packed of them: ids, masks, losses, a resumed run."""
    from shardkit.integrations.trl import ShardDPOTrainer

    steps: dict[str, Any] = {"max_steps": 3, "gradient_accumulation_steps": 2}
    sequential = {"train_sampling_strategy": "sequential"}
    arguments = config(trl.DPOConfig, tmp_path / "raw", **steps, **sequential)
    raw = trained(trl.DPOTrainer, arguments, datasets.Dataset.from_list(pairs()))

    out = packed(tmp_path, pairs(), "preference")
    for sample, row in zip(ShardTable(out), raw.train_dataset, strict=True):
        prompt = row["prompt_ids"]
        for side in ("chosen", "rejected"):
            answer = row[f"{side}_ids"]
            assert sample[f"{side}_input_ids"].tolist() == prompt + answer
            assert sample[f"{side}_labels"].tolist() == [-100] * len(prompt) + answer

    export_hf(out, tmp_path / "hf")
    columns = datasets.load_from_disk(str(tmp_path / "hf"))
    names = ["prompt_ids", "chosen_ids", "rejected_ids"]
    assert [[row[name] for name in names] for row in columns] == [
        [row[name] for name in names] for row in raw.train_dataset
    ]

    def loader() -> ShardLoader:
        return ShardLoader(out, 2, shuffle=False)

    ours = trained(ShardDPOTrainer, config(trl.DPOConfig, tmp_path / "ours", **steps), loader())
    assert logged(ours) == logged(raw)
    assert logged(ours, "rewards/margins") == logged(raw, "rewards/margins")
    theirs = raw.evaluate(datasets.Dataset.from_list(pairs()[:3]))["eval_loss"]
    few = packed(tmp_path / "few", pairs()[:3], "preference")
    assert ours.evaluate(ShardLoader(few, 2))["eval_loss"] == pytest.approx(theirs, rel=1e-4)

    ours.train(resume_from_checkpoint=str(tmp_path / "ours" / "checkpoint-2"))
    assert logged(ours)[-1:] == logged(raw)[2:]
    with pytest.raises(UsageError, match="another kind of training"):
        ours.evaluate(ShardLoader(packed(tmp_path / "kto", labelled(), "kto"), 2))


def test_labelled_answers_have_trls_losses(tmp_path: Path) -> None:
    """The same for KTOTrainer, whose KL term takes the answer of the row before."""
    from shardkit.integrations.trl import ShardKTOTrainer

    arguments = config(trl.KTOConfig, tmp_path / "raw", train_sampling_strategy="sequential")
    raw = trained(trl.KTOTrainer, arguments, datasets.Dataset.from_list(labelled()))
    out = packed(tmp_path, labelled(), "kto")
    for sample, row in zip(ShardTable(out), raw.train_dataset, strict=True):
        assert sample["input_ids"].tolist() == row["prompt_ids"] + row["completion_ids"]
        assert sample["label"] is row["label"]
    export_hf(out, tmp_path / "hf")
    names = ["prompt_ids", "completion_ids", "label"]
    columns = datasets.load_from_disk(str(tmp_path / "hf"))
    for mine, row in zip(columns, raw.train_dataset, strict=True):
        assert [mine[name] for name in names] == [row[name] for name in names]
    ours = trained(
        ShardKTOTrainer,
        config(trl.KTOConfig, tmp_path / "ours"),
        ShardLoader(out, 2, shuffle=False),
    )
    assert logged(ours) == logged(raw)
    assert logged(ours, "kl") == logged(raw, "kl")


def test_rows_that_fill_up_a_batch_have_no_kinds_of_tokens() -> None:
    """What a processor adds for each row (mm_token_type_ids) goes with the rows that are left
    out."""
    from shardkit.integrations.trl import ShardDPOTrainer

    names = ("input_ids", "attention_mask", "completion_mask", "mm_token_type_ids")
    rows = torch.arange(6).repeat_interleave(4).reshape(6, 4)
    batch = {name: rows for name in names} | {"n_padding_rows": 1}
    found = ShardDPOTrainer.model_inputs(None, batch)  # type: ignore[arg-type]
    assert all(found[name][:, 0].tolist() == [0, 1, 3, 4] for name in names)
