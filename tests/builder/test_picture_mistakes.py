"""Mistakes with pictures that once passed in silence: each is refused, or rejected, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from processors import build, picture
from records import TOKENIZER
from shardkit_cli.main import main

import shardkit
from shardkit import ShardDataset, ShardLoader, ShardMixture
from shardkit.dataset import open_dataset
from shardkit.errors import (
    BadInput,
    IdentityMismatch,
    ProcessorError,
    TooManyRejects,
    UsageError,
)
from shardkit.processors import load_processor

MARK = "<image>"


def write(
    folder: Path, texts: list[str], *, n_images: int = 1, size: tuple[int, int] = (60, 50)
) -> Path:
    """LLaVA rows with these questions, each with so many pictures where it has a mark."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for i, text in enumerate(texts):
        turns = [{"from": "human", "value": text}, {"from": "gpt", "value": f"House {i}."}]
        row: dict[str, Any] = {"conversations": turns}
        if MARK in text:
            row["image"] = [f"{i}-{k}.png" for k in range(n_images)]
            for k, name in enumerate(row["image"]):
                picture(*size, seed=k).save(folder / "images" / name)
        rows.append(row)
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a processor, saved once."""
    root = tmp_path_factory.mktemp("processors")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            build(name).save_pretrained(root / name)
        return root / name

    return folder


def packed(rows: Path, name: str = "out", **options: Any) -> Path:
    """The packed dataset's folder."""
    out = rows.parent / name
    shardkit.pack(
        rows, out, **{"image_root": rows.parent / "images", "max_rejects": None, **options}
    )
    return out


def rejects(out: Path) -> dict[int, tuple[str, str]]:
    """(reason, detail) by row."""
    lines = map(json.loads, (out / "rejects.jsonl").read_text().splitlines())
    return {line["row"]: (line["reason"], line["detail"]) for line in lines}


def texts_of(out: Path) -> list[str]:
    """Each sample, decoded."""
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(out / "tokenizer")
    shard = open_dataset(out).open_shard(0)
    return [tokenizer.decode(shard.tokens(row)[0]) for row in range(shard.n_samples)]


WRAPPED = (
    "<|vision_start|><image><|vision_end|>What?",
    "What is <|vision_start|>\n<image> <|vision_end|>?",
    "Compare [IMG_START]<image>[/IMG_START] with a house",
    "Look: <img><image></img>",
)


def test_a_typed_wrapper_is_not_torn(tmp_path: Path) -> None:
    """A tokenizer's own template and one placeholder: what stands around the mark stays there."""
    out = packed(
        write(tmp_path, [*WRAPPED, "What is this? <image>"]),
        tokenizer=TOKENIZER,
        template="qwen_chat",
        image_token="<image>",
    )
    *kept, moved = texts_of(out)
    for text, typed in zip(kept, WRAPPED, strict=True):
        assert typed in text
    assert "<image>\nWhat is this?" in moved


def test_two_marks_of_one_picture_in_a_wrapper_are_no_guess(tmp_path: Path) -> None:
    """One picture, a wrapped mark and a bare one: rejected; two bare marks are one picture."""
    rows = write(tmp_path, ["<a><image></a> and <image>?", "<image> and <image>?", "Why?"])
    out = packed(rows, tokenizer=TOKENIZER, template="qwen_chat", image_token="<image>")
    assert {row: reason for row, (reason, _) in rejects(out).items()} == {0: "placeholder_mismatch"}


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [
        ("qwen2_5_vl", ("<|vision_start|>", "<|vision_end|>")),
        ("internvl", ("<img>", "</img>")),
        ("idefics3", ("<fake_token_around_image>", "<fake_token_around_image>")),
        ("gemma3", ("<start_of_image>", "<end_of_image>")),
    ],
)
def test_a_wrapper_that_the_processor_prints_too_is_rejected(
    name: str, wrapper: tuple[str, str], folders: Any, tmp_path: Path
) -> None:
    """Typed around one picture or several it would stand twice: the row is rejected, and why."""
    begin, end = wrapper
    texts = [
        f"{begin}{MARK}{end}What?",
        f"See {begin}\n{MARK} {end}",
        "Why?",
        "<image> yes",
        "a <b> c",
    ]
    out = packed(write(tmp_path, texts), processor=folders(name))
    assert sorted(found := rejects(out)) == [0, 1]
    assert all(reason == "placeholder_mismatch" for reason, _ in found.values())
    if name != "gemma3":  # its wrapper is what its template prints for a picture
        assert begin in found[0][1]
        assert "take it out" in found[0][1]
    two = write(
        tmp_path / "two", [f"{begin}{MARK}{end} or {MARK}?", f"{MARK} or {MARK}?"], n_images=2
    )
    assert sorted(rejects(packed(two, processor=folders(name)))) == [0]


def test_a_wrong_image_root_is_an_error(folders: Any, tmp_path: Path, capsys: Any) -> None:
    """Every picture missing, though most rows are text: no dataset, and the first reason."""
    rows = write(tmp_path, ["<image> one", "<image> two", *["Why?", "How?"] * 4])
    (tmp_path / "other").mkdir()
    command = ["pack", str(rows), "--out", str(tmp_path / "out"), "--processor"]
    command += [str(folders("llava")), "--image-root"]
    assert main([*command, str(tmp_path / "other")]) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert "pictures were not found" in text
    assert "rows.json row 0: image_missing" in text
    assert "Check --image-root" in text
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert main([*command, str(tmp_path / "other"), "--max-rejects", "2"]) == 0
    assert open_dataset(tmp_path / "out").manifest.n_samples == 8


@pytest.mark.parametrize("root", ["s3://bucket/images", "https://host/i?sig=1", Path("s3:/b/i")])
def test_pictures_at_a_url_are_refused_by_name(root: Any, tmp_path: Path) -> None:
    """With what to do instead; not as rows whose pictures are missing. No query is told."""
    with pytest.raises(UsageError, match="a folder of this machine") as caught:
        shardkit.pack(
            tmp_path / "none.json", tmp_path / "out", tokenizer=str(TOKENIZER), image_root=root
        )
    assert "://" in str(caught.value.found)
    assert "sig" not in str(caught.value)


def test_few_missing_pictures_are_listed(folders: Any, tmp_path: Path) -> None:
    """A picture or two that are lost among others: rejected rows, and a dataset."""
    rows = write(tmp_path, ["<image> one", "<image> two", "<image> three", "Why?"])
    (tmp_path / "images" / "1-0.png").unlink()
    out = packed(rows, processor=folders("llava"), max_rejects=0.5)
    assert rejects(out)[1][0] == "image_missing"


@pytest.mark.parametrize("opened", [ShardLoader, ShardDataset, ShardMixture])
def test_a_whole_processor_is_no_image_transform(opened: Any, tmp_path: Path) -> None:
    """Refused by name before a batch, whoever reads the dataset."""
    out = packed(
        write(tmp_path, ["<image> one", "Why?"]), tokenizer=TOKENIZER, template="qwen_chat"
    )
    where = {out: 1} if opened is ShardMixture else out
    options = {"batch_size": 1} if opened is ShardLoader else {}
    for processor in (build("llava"), load_processor(build("llava"))):
        with pytest.raises(UsageError, match="whole processor") as caught:
            opened(where, image_transform=processor, **options)
        assert "--processor" in str(caught.value)
    with pytest.raises(UsageError, match="fast_pixels"):
        opened(where, fast_pixels=True, **options)


@pytest.mark.parametrize("packing", ["none", "best-fit"])
def test_pictures_that_were_not_counted_are_not_expanded(packing: str, tmp_path: Path) -> None:
    """Packed with --max-length and no --image-tokens: the loader refuses to make rows longer."""
    rows = write(tmp_path, ["<image> one", "Why?"])
    options: dict[str, Any] = {"tokenizer": TOKENIZER, "template": "qwen_chat", "packing": packing}
    out = packed(rows, max_length=64, **options)
    for where in (out, {out: 1}):
        opened: Any = ShardMixture if isinstance(where, dict) else ShardDataset
        with pytest.raises(IdentityMismatch, match="--image-tokens 576"):
            opened(where, expand_image_tokens=576, image_token_id=7)
    counted = packed(rows, "counted", max_length=64, image_tokens=9, **options)
    batch = next(iter(ShardLoader(counted, 1, expand_image_tokens=9, image_token_id=7)))
    assert batch["input_ids"].shape[1] <= 64


def test_a_processor_without_its_placeholder_is_refused(folders: Any, tmp_path: Path) -> None:
    """A tokenizer that does not know the image token: named, before any input is read."""
    from transformers import AutoTokenizer

    real = build("qwen2_5_vl")
    lame = type(real)(
        real.image_processor, AutoTokenizer.from_pretrained(TOKENIZER), chat_template="x"
    )
    with pytest.raises(ProcessorError, match="no token for a picture") as caught:
        shardkit.pack(tmp_path / "nothing.json", tmp_path / "out", processor=lame)
    assert "<|image_pad|>" in str(caught.value)


def test_a_picture_that_outgrows_max_length_rejects_its_row(folders: Any, tmp_path: Path) -> None:
    """Its tokens and the limit are named; with smaller max_pixels the same row is kept."""
    rows = write(tmp_path, ["<image> one", "Why?"], size=(640, 480))
    out = packed(rows, processor=folders("qwen2_5_vl"), max_length=50)
    reason, detail = rejects(out)[0]
    assert reason == "image_too_long"
    assert "max length 50" in detail
    small = packed(
        rows, "small", processor=folders("qwen2_5_vl"), max_length=50, max_pixels=28 * 28 * 16
    )
    assert not rejects(small)


def test_a_picture_of_a_size_that_no_processor_takes_rejects_its_row(
    folders: Any, tmp_path: Path
) -> None:
    """Qwen's takes none that is over 200 times as long as wide: said, and its neighbours kept."""
    rows = write(tmp_path, ["<image> one", "<image> two", "Why?"])
    picture(2010, 10).save(tmp_path / "images" / "0-0.png")
    out = packed(rows, processor=folders("qwen2_5_vl"))
    (reason, detail) = rejects(out)[0]
    assert set(rejects(out)) == {0}
    assert reason == "image_refused"
    assert "2010 x 10 pixels" in detail
    assert "aspect ratio" in detail


def test_placeholders_as_text_are_rejected(folders: Any, tmp_path: Path) -> None:
    """The family's own token typed in a question, with a picture and without."""
    for name, token in (("qwen2_5_vl", "<|image_pad|>"), ("internvl", "<IMG_CONTEXT>")):
        texts = [f"{MARK} what is {token}?", f"What is {token}?", "Why?", f"{MARK} good"]
        out = packed(write(tmp_path / name, texts), processor=folders(name))
        found = rejects(out)
        assert {row: reason for row, (reason, _) in found.items()} == {
            0: "placeholder_mismatch",
            1: "placeholder_mismatch",
        }


def test_no_picture_at_all_is_said(folders: Any, tmp_path: Path) -> None:
    """Nothing but rows whose pictures are missing: no dataset, as before."""
    rows = write(tmp_path, ["<image> one"])
    with pytest.raises(BadInput, match="no row could be kept"):
        packed(rows, processor=folders("llava"), image_root=tmp_path)


def test_missing_pictures_are_judged_by_a_share_only(folders: Any, tmp_path: Path) -> None:
    """A number of rows that may be rejected is the user's own word."""
    rows = write(tmp_path, ["<image> one", "Why?", "How?"])
    (tmp_path / "images" / "0-0.png").unlink()
    with pytest.raises(TooManyRejects):
        packed(rows, processor=folders("llava"), max_rejects=0.5)
    assert packed(rows, "again", processor=folders("llava"), max_rejects=1).exists()
