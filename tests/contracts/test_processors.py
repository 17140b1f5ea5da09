"""Every family of PROCESSORS, against its processor and a tiny model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from processors import BUILDERS, SIZES, build, picture
from tiny_vlm import tiny_model
from PIL import Image

from shardkit.errors import ProcessorError, UsageError
from shardkit.processors import (
    PROCESSORS,
    Place,
    VisionProcessor,
    differences,
    identity_of,
    load_processor,
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
    """No family comes without a processor and a model to prove it on."""
    import transformers

    tried = {type(build(name)).__name__ for name in BUILDERS if name != "pixtral"}
    named = {cls for family in PROCESSORS.values() for cls in family.classes}
    assert named - {"PixtralProcessor"} <= tried | {"SmolVLMProcessor"}
    assert all(hasattr(transformers, cls) for cls in named)


@EVERY
@pytest.mark.parametrize("n_pictures", [1, 2])
def test_the_text_of_a_picture_is_the_processors(name: str, n_pictures: int, loaded: Any) -> None:
    """For each size: the ids of the text with pictures are those of the whole processor."""
    processor = loaded(name)
    for size in (*SIZES, (13, 99), (640, 480)):
        pictures = [picture(*size), picture(64, 48)][:n_pictures]
        text = " and ".join(["What is", *[processor.placeholder] * n_pictures, "for?"])
        assert ids_of(processor, text, pictures) == processor.ids(text, pictures)


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
        (text, [picture(*size) for size in some])
        for text, some in zip(texts, sizes, strict=True)
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


@EVERY
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_packed_document_has_the_logits_it_has_alone(
    name: str, attention: str, loaded: Any
) -> None:
    """Pixels, extra keys and positions of a pack are such that nothing is seen of others."""
    processor, model = loaded(name), tiny_model(name, attention)
    documents = documents_of(processor)
    with torch.no_grad():
        together = model(**packed(processor, documents), use_cache=False).logits[0]
    begin = 0
    for document in documents:
        expected = alone(model, processor, document)
        found = together[begin : begin + len(expected)]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        begin += len(expected)
    assert begin == len(together)
