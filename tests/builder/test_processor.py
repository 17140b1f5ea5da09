"""pack(processor=...): rows are the processor's ids, pictures are whole, and counts are checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processors import BUILDERS, CLASSES, build, picture
from vlm_rows import ids_by_processor, write

import shardkit
from shardkit.builder import append
from shardkit.builder import pictures as builder_pictures
from shardkit.builder.repair import repair
from shardkit.dataset import open_dataset
from shardkit.errors import IdentityMismatch, ProcessorError, UsageError
from shardkit.processors import PROCESSORS, VisionProcessor, load_processor

EVERY = pytest.mark.parametrize("name", BUILDERS)
N = 10


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten rows: one picture, none, two, one in a later turn, one in a tool's result."""
    return write(tmp_path_factory.mktemp("rows"), N)


def saved(name: str, folder: Path) -> Path:
    """The processor's folder, as a user has it."""
    build(name).save_pretrained(folder / name)
    return folder / name


def pack(rows: Path, out: Path, **options: Any) -> Any:
    """The packed dataset."""
    shardkit.pack(rows, out, image_root=rows.parent / "images", **options)
    return open_dataset(out)


def documents_of(dataset: Any) -> dict[int, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """(ids, labels) of each source row."""
    found = {}
    for number in range(len(dataset.manifest.shards)):
        shard = dataset.open_shard(number)
        for row in range(shard.n_samples):
            tokens = shard.tokens(row)
            if shard.segments is None:
                found[int(shard.index["record"][row])] = (tokens[0], tokens[1])
                continue
            for part in shard.segments_of(row):
                place = slice(part["start"], part["start"] + part["length"])
                found[int(part["record"])] = (tokens[0][place], tokens[1][place])
    return found


@EVERY
def test_ids_are_those_of_apply_chat_template(name: str, rows: Path, tmp_path: Path) -> None:
    """Several pictures, none, later turns, tool results: the same ids; pictures have no label."""
    folder = saved(name, tmp_path)
    processor = load_processor(folder)
    dataset = pack(rows, tmp_path / "out", processor=str(folder))
    assert not shardkit.verify(tmp_path / "out", processor=str(folder)).findings
    found = documents_of(dataset)
    assert sorted(found) == list(range(N))
    for row, (ids, labels) in found.items():
        assert ids.tolist() == ids_by_processor(processor.real, row)
        assert not np.isin(labels, processor.type_ids).any()
    recipe = dataset.manifest.recipe["images"]["processor"]
    assert CLASSES[name] in PROCESSORS[recipe["family"]].classes


@pytest.mark.parametrize("name", ["qwen2_5_vl", "idefics3", "llava_onevision"])
def test_packs_hold_whole_documents_and_pictures(name: str, rows: Path, tmp_path: Path) -> None:
    """best-fit: every document whole; each picture's place and count are in KEY.json."""
    folder = saved(name, tmp_path)
    processor = load_processor(folder)
    dataset = pack(rows, tmp_path / "out", processor=folder, packing="best-fit", max_length=400)
    for row, (ids, _) in documents_of(dataset).items():
        assert ids.tolist() == ids_by_processor(processor.real, row)
    shard = dataset.open_shard(0)
    assert shard.n_samples < N
    for row in range(shard.n_samples):
        meta, ids = shard.meta(row), shard.tokens(row)[0]
        for image in meta.images if meta else ():
            ((first, length),) = image.spans
            inside = ids[first : first + length] == processor.image_token_id
            assert np.count_nonzero(inside) == image.tokens
    assert not shardkit.verify(tmp_path / "out", processor=folder).findings


def test_concat_ends_a_pack_before_a_picture(rows: Path, tmp_path: Path) -> None:
    """No pack begins or ends inside a picture or its wrapper, and none is too long."""
    folder = saved("qwen2_5_vl", tmp_path)
    processor = load_processor(folder)
    tokens = processor.real.tokenizer.convert_tokens_to_ids
    start, end = tokens("<|vision_start|>"), tokens("<|vision_end|>")
    dataset = pack(rows, tmp_path / "out", processor=folder, packing="concat", max_length=100)
    shard = dataset.open_shard(0)
    lengths = shard.index["length"]
    assert lengths.max() <= 100
    assert len(set(lengths[:-1].tolist())) > 1
    for row in range(shard.n_samples):
        ids = shard.tokens(row)[0]
        assert np.count_nonzero(ids == start) == np.count_nonzero(ids == end)
        assert ids[0] not in (processor.image_token_id, end)
    assert not shardkit.verify(tmp_path / "out", processor=folder).findings


def test_a_cut_row_keeps_whole_pictures(rows: Path, tmp_path: Path) -> None:
    """Truncation ends before a picture that does not fit; a picture that never fits is rejected."""
    folder = saved("qwen2_5_vl", tmp_path)
    processor = load_processor(folder)
    dataset = pack(rows, tmp_path / "out", processor=folder, max_length=55)
    for row, (ids, _) in documents_of(dataset).items():
        whole = ids_by_processor(processor.real, row)
        assert ids.tolist() == whole[: len(ids)]
        assert whole[len(ids) : len(ids) + 1] != [processor.image_token_id]
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    reasons = {json.loads(line)["row"]: json.loads(line)["reason"] for line in lines}
    assert reasons[0] == reasons[5] == "image_too_long"


def test_max_pixels_is_the_processors(rows: Path, tmp_path: Path) -> None:
    """--max-pixels changes the ids as the processor's own setting does; the recipe has it."""
    folder = saved("qwen2_5_vl", tmp_path)
    limit = 28 * 28 * 8
    dataset = pack(rows, tmp_path / "out", processor=folder, max_pixels=limit)
    small = load_processor(folder, arguments={"max_pixels": limit})
    for row, (ids, _) in documents_of(dataset).items():
        assert ids.tolist() == ids_by_processor(small.real, row)
    settings = dataset.manifest.recipe["images"]["processor"]["settings"]
    assert settings["max_pixels"] == limit
    with pytest.raises(UsageError, match="max_pixels"):
        pack(rows, tmp_path / "no", processor=saved("llava", tmp_path), max_pixels=limit)


def test_tokens_are_those_of_what_is_stored(rows: Path, tmp_path: Path) -> None:
    """--store-max-pixels: counts, checks and `verify` go by the smaller picture; repair too."""
    folder = saved("qwen2_5_vl", tmp_path)
    processor = load_processor(folder)
    out = tmp_path / "out"
    dataset = pack(rows, out, processor=folder, store_max_pixels=28 * 28 * 20)
    shard = dataset.open_shard(0)
    n_smaller = 0
    for row in range(shard.n_samples):
        meta = shard.meta(row)
        for image in meta.images if meta else ():
            assert image.tokens == processor.picture((image.width, image.height)).n_tokens <= 25
            n_smaller += image.width * image.height > 28 * 28 * 19
    assert n_smaller == dataset.manifest.checks["notes"]["pictures_made_smaller"] > 0
    assert not shardkit.verify(out, processor=folder, sources=[rows]).findings
    before = (out / "shard-00000.tar").read_bytes()
    (out / "shard-00000.tar").write_bytes(before[:-4] + b"xxxx")
    options: dict[str, Any] = {"image_root": rows.parent / "images", "processor": folder}
    repair(out, ["shard-00000.tar"], [rows], **options)
    assert (out / "shard-00000.tar").read_bytes() == before


def test_a_wrong_count_stops_the_pack(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts are compared with the whole processor: picture, size and both counts are named."""
    folder = saved("qwen2_5_vl", tmp_path)
    right = VisionProcessor.picture

    def wrong(self: VisionProcessor, size: tuple[int, int], n_in_document: int = 1) -> Any:
        return right(self, (size[0] + 100, size[1] + 100), n_in_document)

    monkeypatch.setattr(VisionProcessor, "picture", wrong)
    with pytest.raises(ProcessorError) as caught:
        pack(rows, tmp_path / "out", processor=folder)
    text = str(caught.value)
    assert "50 x 50" in text
    assert "2-0.png" in text
    assert "expected 4 tokens, found 25 tokens" in text


def test_rows_are_checked_now_and_then(rows: Path, tmp_path: Path) -> None:
    """The first rows with pictures are compared, then one row in so many."""
    processor = load_processor(saved("llava", tmp_path))
    assert builder_pictures.FIRST_CHECKED >= 1
    assert builder_pictures.CHECKED_SHARE <= 1024
    pack(rows, tmp_path / "out", processor=processor)


def test_text_that_spells_the_image_token_is_rejected(tmp_path: Path) -> None:
    """Typed by a user it is no picture: the row is rejected, or with `literal` stays text."""
    text = {"role": "user", "content": "what does <|image_pad|> do?"}
    answer = {"role": "assistant", "content": "It marks a picture."}
    path = tmp_path / "rows.jsonl"
    good = {"messages": [{"role": "user", "content": "Hi"}, answer]}
    path.write_text(json.dumps({"messages": [text, answer]}) + "\n" + json.dumps(good) + "\n")
    folder = saved("qwen2_5_vl", tmp_path)
    shardkit.pack(path, tmp_path / "out", processor=folder)
    (line,) = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "placeholder_mismatch"
    shardkit.pack(path, tmp_path / "literal", processor=folder, special_tokens_in_text="literal")
    assert not (tmp_path / "literal" / "rejects.jsonl").read_text()


def test_appended_and_repaired_with_the_recipes_settings(rows: Path, tmp_path: Path) -> None:
    """append and repair take the processor's folder, and the settings from the manifest."""
    folder = saved("qwen2_5_vl", tmp_path)
    out, images = tmp_path / "out", rows.parent / "images"
    more = write(tmp_path / "more", 4)
    pack(rows, out, processor=folder, max_pixels=28 * 28 * 8)
    with pytest.raises(UsageError, match="processor"):
        append(out, more, image_root=tmp_path / "more" / "images")
    append(out, more, image_root=tmp_path / "more" / "images", processor=folder)
    other = saved("llava", tmp_path)
    with pytest.raises(IdentityMismatch, match="family"):
        repair(out, ["shard-00000.tar"], [rows], image_root=images, processor=other)
    before = (out / "shard-00000.tar").read_bytes()
    (out / "shard-00000.tar").write_bytes(before[:-4] + b"xxxx")
    repair(out, ["shard-00000.tar"], [rows], image_root=images, processor=folder)
    assert (out / "shard-00000.tar").read_bytes() == before
    assert not shardkit.verify(out, processor=folder, sources=[rows, more]).findings


def test_what_contradicts_a_processor_is_refused(rows: Path, tmp_path: Path) -> None:
    """A tokenizer beside it, an image constant, a named template, packs that models cannot see."""
    folder = saved("llava", tmp_path)
    for options in (
        {"tokenizer": str(folder)},
        {"image_tokens": 576},
        {"template": "vicuna"},
        {"processor_args": {"no_such_setting": 1}},
    ):
        with pytest.raises(UsageError):
            pack(rows, tmp_path / "out", processor=folder, **options)
    gemma = saved("gemma3", tmp_path)
    with pytest.raises(UsageError, match="apart"):
        pack(rows, tmp_path / "out", processor=gemma, packing="best-fit", max_length=400)
    with pytest.raises(UsageError, match="without a processor"):
        pack(rows, tmp_path / "out", tokenizer=str(folder), max_pixels=100)


def test_verify_with_another_processor_is_a_finding(rows: Path, tmp_path: Path) -> None:
    """With sources, too: it is not said to be missing."""
    pack(rows, tmp_path / "out", processor=saved("qwen2_5_vl", tmp_path))
    other = saved("llava", tmp_path)
    found = shardkit.verify(tmp_path / "out", processor=other, sources=[rows]).findings
    assert [finding.code for finding in found] == ["processor"]


def test_verify_finds_a_picture_of_another_size(rows: Path, tmp_path: Path) -> None:
    """A stored picture that is replaced by a larger one is not that of its tokens."""
    folder = saved("qwen2_5_vl", tmp_path)
    processor = load_processor(folder)
    pack(rows, tmp_path / "out", processor=processor)
    processor._pictures.clear()
    right = VisionProcessor.picture
    other = load_processor(folder)
    other._pictures[(picture(57, 211).size, False)] = right(processor, (50, 50))
    found = shardkit.verify(tmp_path / "out", processor=other).findings
    assert {finding.code for finding in found} == {"picture"}


def test_a_processor_object_packs_too(rows: Path, tmp_path: Path) -> None:
    """An object as AutoProcessor gives it makes the same bytes as its folder, with workers too."""
    folder = saved("idefics3", tmp_path)
    one = shardkit.pack(
        rows, tmp_path / "a", processor=build("idefics3"), image_root=rows.parent / "images"
    )
    two = shardkit.pack(
        rows,
        tmp_path / "b",
        processor=folder,
        image_root=rows.parent / "images",
        workers=2,
        part_rows=3,
    )
    assert one is not None
    assert two is not None
    assert one.recipe == two.recipe


def test_inspect_shows_pictures_and_collapses_their_tokens(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Size, tokens and grid of each picture; a run of image tokens once, with its length."""
    from shardkit_cli.main import main

    folder = saved("qwen2_5_vl", tmp_path)
    pack(rows, tmp_path / "out", processor=folder)
    assert main(["inspect", str(tmp_path / "out"), "--sample", "0"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "300 x 200" in text
    assert "54 tokens, grid 1 x 12 x 18" in text
    assert "<|vision_start|><|image_pad|> x 54<|vision_end|>" in text
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "max_pixels 50176" in capsys.readouterr().out


def test_pictures_of_documents_are_refused_by_name(rows: Path, tmp_path: Path) -> None:
    """A document is no chat: nobody says what stands for its picture; one without is packed."""
    folder = saved("qwen2_5_vl", tmp_path)
    name = next((rows.parent / "images").iterdir()).name
    lines = [{"text": "a <image> b", "image": name}, {"text": "words alone"}]
    source = rows.parent / "documents.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))

    dataset = pack(source, tmp_path / "out", processor=folder, append_eos=True)

    assert sorted(documents_of(dataset)) == [1]
    ids = documents_of(dataset)[1][0]
    assert ids[-1] == load_processor(folder).real.tokenizer.eos_token_id
    (line,) = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "unsupported_field"
    assert "a processor takes pictures of chats alone" in json.loads(line)["detail"]
