"""Preference rows: every published shape becomes one sample of two segments, or is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processors import build
from records import TOKENIZER, pack_small
from vlm_rows import picture_of

from shardkit import ShardDataset, ShardLoader, ShardMixture, ShardTable, pack
from shardkit.builder import append, repack
from shardkit.builder.repair import repair
from shardkit.check import verify
from shardkit.dataset import open_dataset
from shardkit.errors import BadInput, BuildConflict, IdentityMismatch, UsageError
from shardkit.format.manifest import Manifest
from shardkit.integrations.deepspeed import SequenceRows
from shardkit.integrations.xtuner import XTunerDataset
from shardkit.report.page import ReportOptions, make_report
from shardkit.report.plan import make_plan
from shardkit.report.view import view_sample

GOOD = {"role": "assistant", "content": "Good."}
BAD = {"role": "assistant", "content": "Bad, I fear."}
ASK = {"role": "user", "content": "What?"}
TALK = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: What?\n\nAssistant: "
SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "messages": ({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}, "What?"),
    "conversations": ({"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, "What?"),
    "ultrafeedback": (
        {
            **{"prompt": "What?", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
            **{"messages": [ASK, GOOD], "score_chosen": 7.5, "score_rejected": 2.0},
        },
        "What?",
    ),
    "strings": ({"prompt": "What?", "chosen": "Good.", "rejected": "Bad, I fear."}, "What?"),
    "orca": (
        {"system": "Think.", "question": "What?", "chosen": "Good.", "rejected": "Bad, I fear."},
        "Think.What?",
    ),
    "factory": (
        {
            "conversations": [{"from": "human", "value": "What?"}],
            "chosen": {"from": "gpt", "value": "Good."},
            "rejected": {"from": "gpt", "value": "Bad, I fear."},
        },
        "What?",
    ),
    "instruction": (
        {
            **{"instruction": "Do", "input": "What?", "history": [["a", "b"]]},
            **{"chosen": "Good.", "rejected": "Bad, I fear."},
        },
        "abDo\nWhat?",
    ),
    "hh": ({"chosen": TALK + "Good.", "rejected": TALK + "Bad, I fear."}, "HiYes?What?"),
    "factory 1": (
        {
            "chosen_messages": [ASK | {"loss_weight": 0.0}, GOOD | {"loss_weight": 1.0}],
            "rejected_messages": [ASK | {"loss_weight": 0.0}, BAD],
        },
        "What?",
    ),
    "json": (
        {"prompt": json.dumps([ASK]), "chosen": json.dumps([GOOD]), "rejected": json.dumps([BAD])},
        "What?",
    ),
}
NAMED: list[tuple[dict[str, Any], str]] = [
    ({"chosen": "a", "rejected": "b"}, "no prompt"),
    ({"prompt": "q", "chosen": "a"}, "$.rejected: is missing"),
    ({"prompt": "q", "chosen": "a", "rejected": "a"}, "the same"),
    ({"prompt": "q", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, "another prompt"),
    ({"chosen": [ASK, GOOD], "rejected": "Bad."}, "a whole conversation"),
    ({"chosen": [ASK, GOOD, BAD], "rejected": [ASK, GOOD]}, "nothing is left"),
    ({"prompt": "q", "chosen": [GOOD | {"weight": 0}], "rejected": [BAD]}, "a switch of the loss"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "rejected_2": "c"}, "$.rejected_2"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "label": True}, "$.label"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "reasoning": "c"}, "$.reasoning"),
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def packed(path: Path, out: Path, **options: Any) -> Manifest:
    manifest = pack(path, out, **options)
    assert manifest is not None
    return manifest


def pieces(dataset: Path, row: int) -> list[list[tuple[str, bool]]]:
    opened = open_dataset(dataset)
    return [segment.pieces for segment in view_sample(opened, 0, row).segments]


def plain(text: str) -> str:
    """A rendered prompt without its markers."""
    for marker in ("<|im_start|>", "<|im_end|>\n", "system\n", "user\n", "assistant\n"):
        text = text.replace(marker, "")
    return text


def test_every_shape_is_a_prompt_with_two_answers(tmp_path: Path) -> None:
    """The same segments of each; what contradicts itself is rejected, and says why."""
    rows = [row for row, _ in SHAPES.values()] + [row for row, _ in NAMED]
    path, out = write(tmp_path / "a.jsonl", rows), tmp_path / "out"
    manifest = packed(path, out, tokenizer=TOKENIZER, task="preference", max_rejects=None)
    assert manifest.n_samples == len(SHAPES)
    for i, (_, prompt) in enumerate(SHAPES.values()):
        chosen, rejected = pieces(out, i)
        assert [plain(side[0][0]) for side in (chosen, rejected)] == [prompt, prompt]
        assert [chosen[0][1], rejected[0][1]] == [False, False]
        assert chosen[1:] == [("Good.<|im_end|>\n", True)]
        assert rejected[1:] == [("Bad, I fear.<|im_end|>\n", True)]
    lines = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    for line, (_, words) in zip(lines, NAMED, strict=True):
        assert words in line["detail"], line
    fields = manifest.checks["unread_fields"]["fields"]["a.jsonl"]
    assert fields == {"$.score_chosen": 1, "$.score_rejected": 1}
    assert not verify(out, sources=[path]).findings
    page = make_report(open_dataset(out), ReportOptions())
    assert all(f"a.jsonl row 0, {answer}" in page for answer in ("chosen", "rejected"))


def test_a_pair_is_cut_answer_by_answer(tmp_path: Path) -> None:
    """max_length holds for each of the two; a row of which one answer is gone is rejected."""
    long = {"prompt": "q", "chosen": "a", "rejected": "b c d e f g h i j k l m n o p"}
    lost = {"prompt": "q " * 40, "chosen": "a", "rejected": "b"}
    path, out = write(tmp_path / "a.jsonl", [long, lost]), tmp_path / "out"
    manifest = packed(path, out, tokenizer=TOKENIZER, task="preference", max_length=16)
    index = open_dataset(out).open_shard(0)
    assert index.segments is not None
    assert index.segments["length"].tolist()[1] == 16 > index.segments["length"].tolist()[0]
    assert index.segments["n_cut"].tolist() == [0, manifest.checks["truncated"]["n_tokens"]]
    assert manifest.checks["no_supervised_tokens"]["n"] == 1
    assert not verify(out, sources=[path]).findings
    pack_small(path, tmp_path / "named", task="preference", max_length=16)
    assert not verify(tmp_path / "named", sources=[path]).findings


def test_workers_appends_and_repairs_give_the_same_rows(tmp_path: Path) -> None:
    """Two workers and one, append, repair; repack, packing and other tasks are refused by name."""
    rows = [
        {"id": f"r{i}", "prompt": f"q {i}", "chosen": "yes " * (i % 5 + 1), "rejected": f"no {i}"}
        for i in range(120)
    ]
    first, second = write(tmp_path / "a.jsonl", rows[:80]), write(tmp_path / "b.jsonl", rows[80:])
    options: dict[str, Any] = {"task": "preference", "max_length": 64}
    whole = pack_small(first, tmp_path / "one", **options)
    assert pack_small(first, tmp_path / "two", workers=2, **options) == whole
    shutil.copytree(tmp_path / "one", tmp_path / "more")
    appended = append(tmp_path / "more", second)
    assert appended.n_samples == 120
    assert appended.recipe["task"] == "preference"
    shard = tmp_path / "more" / "shard-00000.tar"
    before = shard.read_bytes()
    shard.write_bytes(before[:2000] + bytes([before[2000] ^ 1]) + before[2001:])
    repair(tmp_path / "more", [shard.name], [first, second])
    assert shard.read_bytes() == before
    assert not verify(tmp_path / "more", sources=[first, second]).findings
    with pytest.raises(UsageError, match="--packing with --task preference"):
        pack_small(first, tmp_path / "x", packing="concat", **options)
    with pytest.raises(UsageError, match="shapes of its own"):
        pack_small(first, tmp_path / "x", source_format="alpaca", **options)
    with pytest.raises(BadInput, match="not what --task kto reads"):
        pack_small(first, tmp_path / "x", task="kto")
    with pytest.raises(BadInput, match="--task preference"):
        pack_small(first, tmp_path / "x")
    with pytest.raises(BuildConflict, match="preference rows are not packed anew"):
        repack(tmp_path / "one", tmp_path / "x", max_length=32)
    with pytest.raises(UsageError, match="which plan does not count"):
        make_plan(open_dataset(tmp_path / "one"))
    sft = write(tmp_path / "sft.jsonl", [{"question": "q", "answer": "a"}])
    pack_small(sft, tmp_path / "sft")
    with pytest.raises(IdentityMismatch, match="another task"):
        ShardMixture({tmp_path / "one": 1.0, tmp_path / "sft": 1.0})


def test_labelled_answers_keep_their_label(tmp_path: Path) -> None:
    """Prompt and completion, chats and instructions, with `label` or `kto_tag`."""
    rows: list[dict[str, Any]] = [
        {"prompt": [ASK], "completion": [GOOD], "label": True},
        {"prompt": "What?", "completion": "Bad, I fear.", "label": False},
        {"messages": [ASK, GOOD], "label": True},
        {"instruction": "What?", "input": "", "output": "Bad, I fear.", "kto_tag": False},
        {"prompt": "What?", "completion": "Good.", "label": None},
        {"prompt": "What?", "completion": "Good.", "label": 1},
    ]
    path, out = write(tmp_path / "a.jsonl", rows), tmp_path / "out"
    manifest = packed(path, out, tokenizer=TOKENIZER, task="kto")
    assert manifest.sources[0].rejected == {"bad_record": 2}
    table = ShardTable(out)
    assert [table[i]["label"] for i in range(4)] == [True, False, True, False]
    for i in range(4):
        ((prompt, answer),) = pieces(out, i)
        assert (plain(prompt[0]), prompt[1]) == ("What?", False)
        assert answer == (("Good." if i % 2 == 0 else "Bad, I fear.") + "<|im_end|>\n", True)
    for loader in (ShardLoader(out, 4, shuffle=False), [table.collate([*table])]):
        (batch,) = loader
        assert batch["label"].tolist() == [True, False, True, False]
    assert not verify(out, sources=[path]).findings


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    rows = [{"prompt": f"q {i}", "chosen": "a " * i, "rejected": "b"} for i in range(1, 8)]
    pack_small(write(folder / "a.jsonl", rows), folder / "out", task="preference")
    return folder / "out"


def test_loaders_give_both_answers_of_each_pair(pairs: Path) -> None:
    """Apart and stacked, with workers and without, from tables and plain DataLoaders."""
    from torch.utils.data import DataLoader

    table = ShardTable(pairs)
    sides, names = ("chosen", "rejected"), ("input_ids", "labels")
    expected = [
        [[sample[f"{side}_{name}"].tolist() for side in sides] for name in names]
        for sample in table
    ]

    def rows_of(batch: dict[str, Any], side: str, i: int) -> list[list[int]]:
        n = int(batch[f"{side}attention_mask"][i].sum())
        return [batch[f"{side}{name}"][i, :n].tolist() for name in ("input_ids", "labels")]

    for workers in (0, 2):
        loader = ShardLoader(pairs, 3, shuffle=False, num_workers=workers, drop_last=False)
        batches = list(loader)
        assert [batch["n_padding_rows"] for batch in batches] == [0, 0, 2]
        for k, pair in enumerate(expected):
            batch = batches[k // 3]
            for s, side in enumerate(("chosen_", "rejected_")):
                assert rows_of(batch, side, k % 3) == [part[s] for part in pair]
    assert (batches[2]["chosen_labels"][1:] == -100).all()
    stacked = next(iter(ShardLoader(pairs, 3, shuffle=False, pair_layout="stacked")))
    for k in range(6):
        assert rows_of(stacked, "", k) == [part[k // 3] for part in expected[k % 3]]
    assert stacked["completion_mask"].equal(stacked["labels"].ne(-100).long())
    dataset = ShardDataset(pairs, shuffle=False)
    plain_batch = next(iter(DataLoader(dataset, batch_size=3, collate_fn=dataset.collate)))
    assert plain_batch["rejected_labels"].equal(batches[0]["rejected_labels"])
    by_number = table.collate([table[i] for i in range(3)])
    assert by_number["chosen_input_ids"].equal(batches[0]["chosen_input_ids"])
    with pytest.raises(UsageError, match="no input of one model call"):
        ShardLoader.model_inputs(plain_batch)
    with pytest.raises(UsageError, match="not shared out by token"):
        SequenceRows(ShardLoader(pairs, 3))
    with pytest.raises(UsageError, match="holds preferences"):
        XTunerDataset(pairs)


@pytest.mark.parametrize("name", [None, "qwen2_5_vl"])
def test_pictures_are_stored_once_for_both_answers(name: str | None, tmp_path: Path) -> None:
    """A placeholder, or a processor's tokens, in both segments; one picture in the shard."""
    (tmp_path / "images").mkdir()
    rows = []
    for i in range(4):
        row: dict[str, Any] = {
            "prompt": f"What is {i}?",
            "chosen": "A.",
            "rejected": "No, it is B.",
        }
        if i % 2:
            picture_of(i, 0).save(tmp_path / "images" / f"{i}.png")
            row["image"] = f"{i}.png"
        rows.append(row)
    mark = {"prompt": "q", "chosen": "<image>", "rejected": "b"}
    path, out = write(tmp_path / "a.jsonl", [*rows, mark]), tmp_path / "out"
    options: dict[str, Any] = {"tokenizer": TOKENIZER, "template": "qwen_chat", "image_tokens": 9}
    loading: dict[str, Any] = {}
    if name is not None:
        build(name).save_pretrained(tmp_path / name)
        options = loading = {"processor": tmp_path / name}
    manifest = packed(
        path, out, task="preference", image_root=tmp_path / "images", max_length=400, **options
    )
    assert (manifest.n_images, manifest.n_samples) == (2, 4)
    assert manifest.sources[0].rejected == {"placeholder_mismatch": 1}
    assert not verify(out, sources=[path], **loading).findings
    shard = open_dataset(out).open_shard(0)
    assert shard.segments is not None
    assert shard.segments["n_images"].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    if name is None:
        batch = next(iter(ShardLoader(out, 4, shuffle=False)))
        assert (len(batch["images"]), batch["image_rows"].tolist()) == (2, [1, 3])
        return
    metas = [shard.meta(i) for i in (1, 3)]
    assert [len(image.spans) for meta in metas if meta for image in meta.images] == [2, 2]
    batch = next(iter(ShardLoader(out, 4, shuffle=False, **loading)))
    single = batch["image_grid_thw"]
    token = shard.recipe["images"]["image_token"]
    n_tokens = int(single.prod(1).sum()) // 4
    for side in ("chosen", "rejected"):
        assert int(batch[f"{side}_input_ids"].eq(token).sum()) == n_tokens
        assert batch[f"{side}_position_ids"].shape[0] == 4
    stacked = next(iter(ShardLoader(out, 4, shuffle=False, pair_layout="stacked", **loading)))
    assert np.array_equal(stacked["image_grid_thw"], single.repeat(2, 1))
    assert len(stacked["pixel_values"]) == 2 * len(batch["pixel_values"])
