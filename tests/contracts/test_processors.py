"""Every family of PROCESSORS, against its processor and a tiny model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processors import BUILDERS, CLASSES, HAS_TORCHVISION, SIZES, build, picture
from tiny_vlm import CONFIGS, tiny_model

from shardkit.errors import MissingPackage, PictureRefused, ProcessorError, UsageError
from shardkit.processors import (
    PROCESSORS,
    Place,
    VisionProcessor,
    differences,
    identity_of,
    load_processor,
    load_processor_like,
    mrope_positions,
)

EVERY = pytest.mark.parametrize("name", BUILDERS)
Document = tuple[str, list[Image.Image]]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A processor by name: built, saved and loaded as a user's, once."""
    made: dict[str, VisionProcessor] = {}

    def load(name: str) -> VisionProcessor:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            build(name).save_pretrained(folder)
            made[name] = load_processor(folder)
        return made[name]

    return load


def test_every_class_of_the_table_is_tried() -> None:
    """No class is in the table without a processor and a model to prove it on."""
    named = {cls for family in PROCESSORS.values() for cls in family.classes}
    assert named == set(CLASSES.values())
    assert set(CLASSES) == set(BUILDERS) == set(CONFIGS)


@EVERY
@pytest.mark.parametrize("n_pictures", [1, 2])
def test_the_text_of_a_picture_is_the_processors(name: str, n_pictures: int, loaded: Any) -> None:
    """For each size: the ids of the text with pictures are those of the whole processor."""
    processor = loaded(name)
    for size in (*SIZES, (13, 99), (640, 480)):
        pictures = [picture(*size), picture(64, 48)][:n_pictures]
        text = " and ".join(["What is", *[processor.placeholder] * n_pictures, "for?"])
        assert ids_of(processor, text, pictures) == processor.ids(text, pictures)


@EVERY
def test_odd_sizes_are_counted_or_refused_as_the_processor_does(name: str, loaded: Any) -> None:
    """Strips, single pixels, heights that look like channels: never another count, nor a crash."""
    processor = loaded(name)
    text = f"What is {processor.placeholder} for?"
    for size in ((1, 1), (1, 300), (300, 1), (50, 3), (3, 50), (10, 1990), (2010, 10)):
        pictures = [picture(*size)]
        try:
            expected = processor.ids(text, pictures)
        except Exception:
            with pytest.raises(PictureRefused, match=f"{size[0]} x {size[1]} pixels"):
                processor.picture(size)
        else:
            assert ids_of(processor, text, pictures) == expected


def test_an_odd_size_is_tried(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its count alone says nothing: Pixtral's has one for strips that it then cannot resize."""
    processor = load_processor(loaded("llava").name)

    def refused(*_: object) -> Any:
        raise OSError("no such picture")

    monkeypatch.setattr(VisionProcessor, "run", refused)
    assert processor.picture((300, 16)).n_tokens
    for size in ((330, 16), (16, 330), (15, 15)):
        with pytest.raises(PictureRefused, match="OSError: no such picture"):
            processor.picture(size)


def test_a_strip_that_would_take_gigabytes_is_refused(loaded: Any) -> None:
    """LLaVA resizes the shorter edge first, however long the other is."""
    with pytest.raises(PictureRefused, match="shorter edge"):
        loaded("llava").picture((1, 60_000))


def ids_of(processor: VisionProcessor, text: str, pictures: Sequence[Image.Image]) -> list[int]:
    """The ids by the remembered texts: what packing does, without its batches."""
    parts = [processor.picture(one.size, len(pictures)) for one in pictures]
    pieces = text.split(processor.placeholder)
    between = [*[part.text for part in parts], ""]
    short = "".join(piece + part for piece, part in zip(pieces, between, strict=True))
    runs = iter([n for part in parts for n in part.runs])
    ids: list[int] = []
    for one in processor.real.tokenizer(short)["input_ids"]:
        ids += [one] * (next(runs) if one == processor.image_token_id else 1)
    return ids


def documents_of(processor: VisionProcessor) -> list[Document]:
    """Conversations with one picture, none, several, and one in a later turn."""
    user, answer, end = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n"
    mark = processor.placeholder
    wrapped = mark if mark != "<|image_pad|>" else f"<|vision_start|>{mark}<|vision_end|>"
    texts = [
        f"{user}{wrapped} What is this?{end}{answer}A house.{end}",
        f"{user}Why?{end}{answer}Because it rains.{end}",
        f"{user}{wrapped} and {wrapped} differ?{end}{answer}Yes.{end}",
        f"{user}Hello{end}{answer}Hi{end}{user}This: {wrapped}{end}{answer}A tree{end}",
    ]
    sizes = [SIZES[:1], (), SIZES[1:3], SIZES[3:4]]
    return [
        (text, [picture(*size) for size in some]) for text, some in zip(texts, sizes, strict=True)
    ]


def alone(model: Any, processor: VisionProcessor, document: Document) -> torch.Tensor:
    """(T, vocabulary) logits of a document alone, all its inputs by the whole processor."""
    text, pictures = document
    inputs = processor.real(
        text=[text], images=[pictures] if pictures else None, return_tensors="pt"
    )
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs, use_cache=False).logits[0]
    return logits


def packed(processor: VisionProcessor, documents: Sequence[Document]) -> dict[str, Any]:
    """All documents in one row, by the table's entry."""
    ids = [processor.ids(*document) for document in documents]
    flat = np.array([i for one in ids for i in one])
    text_positions = np.concatenate([np.arange(len(one)) for one in ids])
    batch: dict[str, Any] = {"input_ids": flat[None]}
    arrays = [array for _, pictures in documents for array in processor.arrays(pictures)]
    counts = [len(pictures) for _, pictures in documents]
    rows = np.zeros(len(arrays), np.int64)
    place = Place(rows, np.repeat(np.arange(len(counts)), counts), 1)
    batch.update(processor.join(arrays, place))
    batch["position_ids"] = text_positions[None]
    if processor.family.positions == "mrope":
        merge = processor.real.image_processor.merge_size
        is_image = flat == processor.image_token_id
        batch["position_ids"] = mrope_positions(
            text_positions, is_image, batch["image_grid_thw"], merge
        )[:, None]
    if processor.family.type_key is not None:
        batch[processor.family.type_key] = np.isin(flat, processor.type_ids).astype(np.int64)[None]
    return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in batch.items()}


def padded(processor: VisionProcessor, documents: Sequence[Document]) -> dict[str, Any]:
    """A document a row, padded at the end, by the table's entry."""
    ids = [processor.ids(*document) for document in documents]
    longest = max(map(len, ids))
    values = np.array([one + [0] * (longest - len(one)) for one in ids])
    mask = np.arange(longest) < np.array([len(one) for one in ids])[:, None]
    arrays = [array for _, pictures in documents for array in processor.arrays(pictures)]
    rows = np.repeat(np.arange(len(ids)), [len(pictures) for _, pictures in documents])
    batch: dict[str, Any] = {"input_ids": values, "attention_mask": mask.astype(np.int64)}
    batch.update(processor.join(arrays, Place(rows, rows, len(ids))))
    positions = np.broadcast_to(np.arange(longest), values.shape)
    if processor.family.positions == "mrope":
        merge = processor.real.image_processor.merge_size
        is_image = (values == processor.image_token_id) & mask
        positions = mrope_positions(
            positions.ravel(), is_image.ravel(), batch["image_grid_thw"], merge
        ).reshape(4, *values.shape)
    batch["position_ids"] = positions
    if processor.family.type_key is not None:
        types = np.isin(values, processor.type_ids) & mask
        batch[processor.family.type_key] = types.astype(np.int64)
    return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in batch.items()}


@EVERY
def test_a_document_has_the_logits_it_has_alone(name: str, loaded: Any) -> None:
    """In a pack and in a padded batch, eager and sdpa: pixels, keys and positions are right."""
    processor, model = loaded(name), tiny_model(name)
    documents = documents_of(processor)
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        expected = [alone(model, processor, document) for document in documents]
        with torch.no_grad():
            rows = model(**padded(processor, documents), use_cache=False).logits
        for row, one in zip(rows, expected, strict=True):
            torch.testing.assert_close(row[: len(one)], one, rtol=0, atol=1e-5)
        with torch.no_grad():
            pack = model(**packed(processor, documents), use_cache=False).logits[0]
        apart = torch.allclose(pack, torch.cat(expected), rtol=0, atol=1e-5)
        assert apart or not processor.family.packs  # Gemma-3 stays apart before transformers 5.24


@EVERY
def test_pixels_are_those_of_the_whole_processor(name: str, loaded: Any) -> None:
    """One picture at a time and joined: bit for bit what the processor makes of the batch."""
    processor = loaded(name)
    documents = [one for one in documents_of(processor) if one[1]]
    texts, pictures = zip(*documents, strict=True)
    expected = processor.real(
        text=list(texts), images=list(pictures), return_tensors="np", padding=True
    )
    batch = padded(processor, documents)
    skipped = {"input_ids", "attention_mask", "position_ids"}
    for key in set(expected) - skipped:
        found, wanted = batch[key].numpy(), np.asarray(expected[key])
        if key == processor.family.type_key:
            continue  # the processor pads at the other end
        assert found.dtype == wanted.dtype, key
        assert np.array_equal(found, wanted), key
    assert set(batch) - skipped == set(expected) - skipped


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_positions_are_the_models(name: str, loaded: Any) -> None:
    """Time, height and width of each document are those of get_rope_index."""
    processor, model = loaded(name), tiny_model(name)
    documents = documents_of(processor)
    batch = packed(processor, documents)
    begin, grid = 0, 0
    for text, pictures in documents:
        n = len(processor.ids(text, pictures))
        part = slice(begin, begin + n)
        expected, _ = model.model.get_rope_index(
            input_ids=batch["input_ids"][:, part],
            mm_token_type_ids=batch["mm_token_type_ids"][:, part],
            image_grid_thw=batch["image_grid_thw"][grid : grid + len(pictures)],
        )
        assert torch.equal(batch["position_ids"][1:, :, part], expected)
        begin, grid = begin + n, grid + len(pictures)


@EVERY
def test_the_identity_is_of_settings_not_of_classes(name: str, loaded: Any) -> None:
    """The processor as built and as loaded are one; a changed setting is named with both values."""
    processor = loaded(name)
    ours = identity_of(processor)
    assert identity_of(load_processor(build(name))) == ours
    other = load_processor(processor.name, arguments={"rescale_factor": 0.5})
    assert differences(ours, identity_of(other)) == [
        f"rescale_factor {1 / 255} / 0.5",
    ]


def test_pixel_limits_are_settings(loaded: Any) -> None:
    """max_pixels changes counts and identity; a family without it refuses it by name."""
    processor = loaded("qwen2_5_vl")
    small = load_processor(processor.name, arguments={"max_pixels": 28 * 28 * 16})
    assert small.picture((640, 480)).n_tokens <= 16 < processor.picture((640, 480)).n_tokens
    lines = differences(identity_of(processor), identity_of(small))
    assert lines == [f"max_pixels {28 * 28 * 64} / {28 * 28 * 16}"]
    with pytest.raises(UsageError, match="max_pixels"):
        load_processor(loaded("llava").name, arguments={"max_pixels": 1000})


def test_values_that_a_processor_cannot_work_with_are_refused(loaded: Any) -> None:
    """Of another kind than its own: named with both, and what transformers says of them."""
    for name, argument in (
        ("qwen2_5_vl", {"size": 7}),
        ("llava", {"size": 7}),
        ("internvl", {"image_mean": "abc"}),
        ("idefics3", {"max_image_size": [1, 2]}),
    ):
        (key,) = argument
        with pytest.raises(UsageError, match=f"cannot work with {key}|not take {key}") as caught:
            load_processor(loaded(name).name, arguments=argument)
        assert str(argument[key]) in str(caught.value)


def test_a_setting_that_was_switched_off_is_off_again(loaded: Any) -> None:
    """Identities leave out what is off; the processor of a recipe is made again all the same."""
    for name in ("qwen2_5_vl", "internvl"):
        changed = load_processor(loaded(name).name, arguments={"do_normalize": False})
        wanted = identity_of(changed)
        assert "do_normalize" not in wanted["settings"]  # type: ignore[operator]
        assert identity_of(load_processor_like(loaded(name).name, wanted)) == wanted


def test_other_processors_are_refused_by_name(tmp_path: Any) -> None:
    """A tokenizer, a text model's folder, a processor outside the table, a missing folder."""
    import transformers

    tokenizer = build("llava").tokenizer
    with pytest.raises(ProcessorError, match=type(tokenizer).__name__):
        load_processor(tokenizer)
    make: Any = transformers.CLIPProcessor
    clip = make(build("llava").image_processor, tokenizer)
    with pytest.raises(ProcessorError, match="CLIPProcessor"):
        load_processor(clip)
    with pytest.raises(ProcessorError, match="no such file or folder"):
        load_processor(tmp_path / "nothing")
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ProcessorError):
        load_processor(tmp_path)


def test_an_old_transformers_is_refused_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything of the processor is asked."""
    monkeypatch.setattr("shardkit.processors.transformers_door.version", lambda: "5.10.0.dev0")
    with pytest.raises(ProcessorError, match=r"(?s)CLIP.*5\.17.*5\.10\.0"):
        load_processor(type("CLIP", (), {})())


@pytest.mark.skipif(HAS_TORCHVISION, reason="torchvision is here")
def test_a_missing_package_is_named(loaded: Any, tmp_path: Path) -> None:
    """Pixtral's processor without torchvision: which package, and what to install."""
    folder = tmp_path / "pixtral"
    build("llava").save_pretrained(folder)
    path = folder / "processor_config.json"
    path.write_text(path.read_text().replace("LlavaProcessor", "PixtralProcessor"))
    with pytest.raises(MissingPackage) as caught:
        load_processor(folder)
    assert "orchvision" in str(caught.value)
    assert 'pip install "shardkit[torchvision]"' in str(caught.value)
