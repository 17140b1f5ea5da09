"""A packed dataset as XTuner's train_dataset, and its folder format in and out.

Goldens are made by the real xtuner 0.1.23.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from records import TOKENIZER, alpaca_rows, pack_small, write_json, write_llava
from shared import shared
from synthetic import make_dataset

from shardkit import ShardTable, pack
from shardkit.errors import IdentityMismatch, MissingPackage, TemplateError, UsageError
from shardkit.integrations.hf_export import export_hf
from shardkit.integrations.xtuner import XTunerDataset, collate
from shardkit.tokens.templates import TEMPLATES


class Processor:
    """The part of CLIPImageProcessor that XTuner uses: pixels are the mean colour, 2 by 2."""

    def __init__(self) -> None:
        self.crop_size = {"height": 2, "width": 2}
        self.image_mean = (0.0, 0.5, 1.0)

    def preprocess(self, picture: Any, return_tensors: str) -> dict[str, list[torch.Tensor]]:
        colour = torch.from_numpy(np.array(picture)).float().mean((0, 1))
        return {"pixel_values": [colour[:, None, None].expand(3, 2, 2)]}


def folder_of(path: Path, instances: list[dict[str, Any]]) -> Path:
    """A folder as XTuner's offline tool saves it."""
    import datasets

    datasets.Dataset.from_list(instances).save_to_disk(str(path))
    return path


def pack_folder(folder: Path, out: Path, **options: Any) -> Path:
    """The folder as a dataset of ours."""
    pack(folder, out, source_format="tokenized", tokenizer=TOKENIZER, **options)
    return out


@pytest.mark.needs_shared
@pytest.mark.parametrize("number", range(4))
def test_collate_equals_the_goldens(number: int, tmp_path: Path) -> None:
    """XTuner's own items, through its folder format, our shards, our dataset and our collate."""
    golden = json.loads(shared("goldens/xtuner/collate.json").read_text())[number]
    folder = folder_of(tmp_path / "folder", golden["instances"])
    dataset = XTunerDataset(pack_folder(folder, tmp_path / "out"))
    items = [dataset[i] for i in range(len(dataset))]
    assert items == golden["instances"]

    batch = collate(
        items, pad_index=golden["pad_index"], use_varlen_attn=golden["use_varlen_attn"]
    )["data"]

    assert {name: plain(value) for name, value in batch.items()} == golden["result"]


def plain(value: Any) -> Any:
    """Tensors as lists."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


@pytest.mark.needs_shared
def test_lengths_are_those_of_the_sampler_goldens(tmp_path: Path) -> None:
    """`length` and `modality_length` are lists with XTuner's signs: negative without an image."""
    cases = json.loads(shared("goldens/xtuner/samplers.json").read_text())
    lengths = next(case["lengths"] for case in cases if min(case.get("lengths", [1])) < 0)
    n_images = {i: 1 for i, n in enumerate(lengths) if n > 0}
    plain_lengths = [abs(n) - (i in n_images) for i, n in enumerate(lengths)]
    make_dataset(tmp_path, (4, len(lengths) - 4), lengths=plain_lengths, n_images=n_images)
    dataset = XTunerDataset(tmp_path, image_processor=Processor())
    assert dataset.modality_length == lengths
    assert dataset.length == [abs(n) for n in lengths]
    assert isinstance(dataset.length, list)


def test_length_and_modality_of_three_samples(tmp_path: Path) -> None:
    """Tokens with the placeholder of an image; negative without an image."""
    make_dataset(tmp_path, (3,), lengths=[5, 6, 7], n_images={0: 1, 2: 1})
    dataset = XTunerDataset(tmp_path, image_processor=Processor())
    assert dataset.length == [6, 6, 8]
    assert dataset.modality_length == [6, -6, 8]


def test_a_pack_under_varlen(tmp_path: Path) -> None:
    """Its documents' positions, their borders and the longest one; no mask."""
    make_dataset(tmp_path, (1,), packed=True, lengths=[9])
    batch = collate([XTunerDataset(tmp_path)[0]], use_varlen_attn=True)["data"]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4]]
    assert [one.tolist() for one in batch["cumulative_len"]] == [[0, 4, 9]]
    assert batch["max_seqlen"] == 5
    assert batch["input_ids"].shape == batch["labels"].shape == (1, 9)
    assert "attention_mask" not in batch


def test_images_become_pixel_values(tmp_path: Path) -> None:
    """One image a sample through the config's processor; zeros where there is none."""
    make_dataset(tmp_path, (3,), n_images={0: 1, 2: 1})
    dataset = XTunerDataset(tmp_path, image_processor=Processor(), pad_image_to_square=True)
    items = [dataset[i] for i in range(3)]
    assert items[0]["input_ids"].count(-200) == 1
    # a picture of 12 x 8 pixels of one colour, padded to 12 x 12 with the processor's mean colour
    expected = (8 * torch.tensor([20.0, 140.0, 620 % 251]) + 4 * torch.tensor([0.0, 127, 255])) / 12
    torch.testing.assert_close(items[2]["pixel_values"][:, 0, 0], expected)
    assert not items[1]["pixel_values"].any()
    batch = collate(items, return_hf_format=True)
    assert batch["pixel_values"].shape == (3, 3, 2, 2)


@pytest.mark.parametrize(
    ("n_images", "processor", "words"),
    [({0: 2}, Processor(), "one image a sample"), ({0: 1}, None, "no image_processor")],
)
def test_images_that_xtuner_cannot_take_are_refused(
    tmp_path: Path, n_images: dict[int, int], processor: object, words: str
) -> None:
    """Before the first batch, with the reason."""
    make_dataset(tmp_path, (3,), n_images=n_images)
    with pytest.raises(UsageError, match=words):
        XTunerDataset(tmp_path, image_processor=processor)


def test_another_placeholder_is_refused(tmp_path: Path) -> None:
    """A dataset packed with --image-token is not for XTuner."""
    from synthetic import make_recipe

    recipe = make_recipe(images=True)
    recipe["images"]["image_token"] = 7
    make_dataset(tmp_path, (3,), n_images={0: 1}, recipe=recipe)
    with pytest.raises(UsageError, match="another placeholder"):
        XTunerDataset(tmp_path, image_processor=Processor())


def test_the_config_s_template_and_length_are_checked(tmp_path: Path) -> None:
    """A PROMPT_TEMPLATE entry is compared by its text; another one is refused, naming both."""
    pack_small(write_json(tmp_path / "rows.json", alpaca_rows(5)), tmp_path / "out")

    def entry(name: str) -> dict[str, object]:
        return json.loads(TEMPLATES[name].text)  # type: ignore[no-any-return]

    path = tmp_path / "out"
    assert len(XTunerDataset(path, template=entry("qwen_chat"), max_length=64)) == 5
    assert len(XTunerDataset(path, template="xtuner.utils.PROMPT_TEMPLATE.qwen_chat")) == 5
    with pytest.raises(IdentityMismatch, match="template"):
        XTunerDataset(path, template="xtuner.utils.PROMPT_TEMPLATE.llama3_chat")
    with pytest.raises(IdentityMismatch, match="template"):
        XTunerDataset(path, template=entry("llama3_chat"))
    with pytest.raises(IdentityMismatch, match="max_length"):
        XTunerDataset(path, max_length=2048)
    with pytest.raises(MissingPackage, match="XTuner"):
        XTunerDataset(path, tokenizer={"type": "AutoTokenizer.from_pretrained"})


def test_a_slow_tokenizer_of_the_config_is_refused(tmp_path: Path) -> None:
    """By the name that the config has for it, before XTuner is asked to build it."""
    make_dataset(tmp_path, (2,))
    config = {"type": "AutoTokenizer.from_pretrained", "use_fast": False}
    with pytest.raises(UsageError, match="use_fast=False"):
        XTunerDataset(tmp_path, tokenizer=config)


def test_a_folder_of_tokens_needs_no_chat_template(tmp_path: Path) -> None:
    """The page's two blocks: pack a folder, then train on it with template and length."""
    bare = tmp_path / "tokenizer"
    shutil.copytree(TOKENIZER, bare)
    config = json.loads((bare / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    folder = folder_of(tmp_path / "folder", [{"input_ids": [300, 301], "labels": [-100, 301]}])
    options: dict[str, Any] = {"source_format": "tokenized", "tokenizer": bare}

    pack(folder, tmp_path / "named", template="llama3_chat", max_length=64, **options)
    name = "xtuner.utils.PROMPT_TEMPLATE.llama3_chat"
    assert len(XTunerDataset(tmp_path / "named", template=name, max_length=64)) == 1

    pack(folder, tmp_path / "plain", **options)
    assert len(XTunerDataset(tmp_path / "plain")) == 1
    with pytest.raises(IdentityMismatch, match="without a word on the template"):
        XTunerDataset(tmp_path / "plain", template=name)
    with pytest.raises(TemplateError, match="no chat template"):
        pack(write_json(tmp_path / "a.json", alpaca_rows(2)), tmp_path / "b", tokenizer=bare)


def test_several_packs_a_batch_are_refused_under_varlen(tmp_path: Path) -> None:
    """As XTuner asserts, but with the way out."""
    make_dataset(tmp_path, (2,), packed=True)
    dataset = XTunerDataset(tmp_path)
    with pytest.raises(UsageError, match="one pack a batch"):
        collate([dataset[0], dataset[1]], use_varlen_attn=True)


@pytest.mark.parametrize("packing", ["none", "concat"])
def test_the_folder_format_out_and_in(tmp_path: Path, packing: str) -> None:
    """`export --to hf` and `pack --format tokenized` bring back equal rows, packed ones too."""
    import datasets

    source = write_json(tmp_path / "rows.json", alpaca_rows(40))
    pack_small(source, tmp_path / "out", packing=packing)
    export_hf(tmp_path / "out", tmp_path / "hf")
    there = XTunerDataset(tmp_path / "out")
    folder = datasets.load_from_disk(str(tmp_path / "hf"))
    names = [n for n in folder.column_names if n not in ("length", "seq_lengths")]
    assert ("cumulative_len" in names) == (packing == "concat")
    assert [{name: row[name] for name in names} for row in folder] == [*iterate(there)]
    assert [row["length"] for row in folder] == there.length

    again = XTunerDataset(pack_folder(tmp_path / "hf", tmp_path / "again"))
    assert [*iterate(again)] == [*iterate(there)]


@pytest.mark.parametrize(("n_rows", "column"), [(1, "image"), (4, "images")])
def test_image_names_go_out_and_in(tmp_path: Path, n_rows: int, column: str) -> None:
    """A string where rows have one image, as XTuner reads it; lists where they have several."""
    import datasets

    source = write_llava(tmp_path, n_rows)
    root = tmp_path / "images"
    pack_small(source, tmp_path / "out", image_root=root, image_tokens=4)
    export_hf(tmp_path / "out", tmp_path / "hf")
    folder = datasets.load_from_disk(str(tmp_path / "hf"))
    names = [record.get("image") for record in json.loads(source.read_text())]
    if column == "images":
        names = [[one] if isinstance(one, str) else one or [] for one in names]
    assert folder[:][column] == names

    out = pack_folder(tmp_path / "hf", tmp_path / "again", image_root=root, image_tokens=4)
    tables = ShardTable(tmp_path / "out"), ShardTable(out)
    assert [row.get("images") for row in tables[0]] == [row.get("images") for row in tables[1]]


def iterate(dataset: XTunerDataset) -> Any:
    """All items."""
    return (dataset[i] for i in range(len(dataset)))
