"""TRL's preference trainers: our tokens are theirs, and so are the losses of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from processors import build
from records import TOKENIZER
from shared import shared
from template_oracle.pairs import differing_pairs, pairs
from template_oracle.rows import answer, user
from tiny_models import tiny_llama
from transformers import AutoTokenizer
from trl_runs import short_run
from vlm_rows import picture_of

from shardkit import ShardLoader, ShardTable, pack
from shardkit.errors import UsageError
from shardkit.integrations.hf_export import export_hf

trl = pytest.importorskip("trl", reason="TRL is not installed")
datasets = pytest.importorskip("datasets", reason="datasets is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


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
    pack(path, folder / "out", task=task, **{"tokenizer": TOKENIZER} | more)
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


def test_pictures_of_pairs_are_those_of_trls_collator(tmp_path: Path) -> None:
    """TRL's documented row, its pictures without a mark: ids, masks and pixels of a stacked batch.

    The other rows have a part for each picture, two pictures, and none.
    """
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    processor = build("qwen2_5_vl")
    processor.save_pretrained(tmp_path / "processor")
    parts = [{"type": "image"}, {"type": "text", "text": " and "}, {"type": "image"}]
    asked: list[list[dict[str, Any]]] = [
        [user("What is this?"), answer("A house."), user("Sure?")],
        [user(parts)],
        [{"role": "system", "content": "Be brief."}, user("Hello")],
    ]
    rows: list[dict[str, Any]] = []
    (tmp_path / "images").mkdir()
    for i, prompt in enumerate(asked):
        images = [f"{i}-{k}.png" for k in range((1, 2, 0)[i])]
        for k, name in enumerate(images):
            picture_of(i, k).save(tmp_path / "images" / name)
        said = {"chosen": [answer("Yes, é.")], "rejected": [answer("I do not know.")]}
        rows.append({"images": images, "prompt": prompt, **said})
    out = packed(
        tmp_path / "pairs",
        rows,
        "preference",
        tokenizer=None,
        processor=tmp_path / "processor",
        image_root=tmp_path / "images",
        max_length=None,
    )

    examples = [
        row | {"images": [Image.open(tmp_path / "images" / name) for name in row["images"]]}
        for row in rows
    ]
    theirs = DataCollatorForVisionPreference(processor)(examples)
    loader = ShardLoader(
        out, 3, shuffle=False, pair_layout="stacked", processor=tmp_path / "processor"
    )
    (ours,) = loader
    for i in range(6):
        for name in ("input_ids", "completion_mask"):
            found, expected = (
                batch[name][i][batch["attention_mask"][i].bool()] for batch in (ours, theirs)
            )
            assert found.equal(expected), (i, name)
    assert ours["image_grid_thw"].equal(theirs["image_grid_thw"])
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])


@pytest.mark.needs_shared
@pytest.mark.parametrize("name", ["internlm2", "llama2", "gpt2"])
def test_real_tokenizers_part_pairs_where_trl_parts_them(name: str) -> None:
    """DPOTrainer's own preparation of rows: lists beside a prompt, and whole conversations.

    `make oracle` does so for the larger ones.
    """
    hf = AutoTokenizer.from_pretrained(shared(f"data/tokenizers/{name}"))
    assert differing_pairs(hf, pairs()[:8]) == []
