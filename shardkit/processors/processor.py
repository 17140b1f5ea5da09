"""A processor of transformers, as packing and loading use it.

Two questions are answered here: which text does a picture of a size become (remembered by size),
and which arrays (by the processor's own image code, bit for bit).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from shardkit.errors import PictureRefused, ProcessorError
from shardkit.processors.family import Arrays, Family, Place, Size

BLANK = (128, 128, 128)
"""The colour of pictures that are asked about and not looked at."""
_ODD_EDGE, _ODD_RATIO = 16, 20
"""A picture that is narrower, or longer, is tried: processors refuse some of these, and take a
height of 1 or 3 pixels for the number of channels."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What stands for a picture of one size in the text of a conversation."""

    text: str
    """What the processor writes for the picture, but every run of image tokens is one token."""
    runs: tuple[int, ...]
    """How many image tokens each run is."""
    grid: tuple[int, ...]
    """How the picture is cut up; its meaning is the family's (rows and columns, patches ...)."""

    @property
    def n_tokens(self) -> int:
        """Image tokens: places in the sequence that the model fills with the picture."""
        return sum(self.runs)


@dataclass
class VisionProcessor:
    """A vision-language processor that shardkit knows. Make one with `load_processor`."""

    real: Any
    """transformers' own processor."""
    family_name: str
    family: Family
    name: str
    """The processor's name as the user gave it; for messages only."""
    again: tuple[Callable[..., VisionProcessor], tuple[object, ...]] | None = None
    """What makes it again in another process; None: it came as an object, which is pickled."""
    _pictures: dict[tuple[Size, bool], Picture | str] = field(default_factory=dict, repr=False)
    """What `picture` has found, by size and whether there are several in a document; a text: why
    the processor takes no such picture."""

    def __reduce__(self) -> tuple[object, ...]:
        if self.again is None:
            return (VisionProcessor, (self.real, self.family_name, self.family, self.name))
        return self.again

    @property
    def placeholder(self) -> str:
        """What the chat template prints for a picture, and the processor replaces."""
        return str(self.real.image_token)

    @cached_property
    def image_token_id(self) -> int:
        """The id that is repeated for a picture; ProcessorError where there is none."""
        found = self.real.image_token_ids[0]
        text = None if found is None else self.real.tokenizer.convert_ids_to_tokens(int(found))
        unknown = self.real.tokenizer.unk_token_id
        if text is None or (unknown is not None and found == unknown):
            raise ProcessorError(
                "the tokenizer has no token for a picture",
                where=self.name,
                found=f"image token {self.placeholder!r}",
                fix="Use the tokenizer that belongs to the processor, with its added tokens.",
            )
        return int(found)

    @cached_property
    def image_token(self) -> str:
        """The text of `image_token_id`; Gemma-3's differs from its placeholder."""
        return str(self.real.tokenizer.convert_ids_to_tokens(self.image_token_id))

    @cached_property
    def type_ids(self) -> tuple[int, ...]:
        """The ids that the family's type key marks with 1."""
        return tuple(int(i) for i in self.real.image_token_ids if i is not None)

    @property
    def wrappers(self) -> tuple[str, ...]:
        """What the chat template prints around a picture, and belongs to it."""
        return self.family.wrappers

    @cached_property
    def around(self) -> tuple[str, ...]:
        """Tokens that stand before and after a picture, by its chat template or by itself."""
        text = self.picture((64, 64)).text.strip()
        every = self.real.tokenizer.get_added_vocab()
        own = [token for token in every if text.startswith(token) or text.endswith(token)]
        return tuple(sorted({*self.family.wrappers, *own} - {self.image_token}))

    @property
    def by_document(self) -> bool:
        """Whether a picture depends on how many its conversation has."""
        return self.family.by_document

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """What the processor itself passes to its image processor."""
        merged = self.real._merge_kwargs(
            getattr(self.real, "valid_processor_kwargs", None),
            tokenizer_init_kwargs=self.real.tokenizer.init_kwargs,
        )
        return {**merged["images_kwargs"], "return_tensors": "np"}

    def picture(self, size: Size, n_in_document: int = 1) -> Picture:
        """What stands for an upright picture of `size` in a document of so many pictures.

        Raises PictureRefused where the processor takes none of that size.
        """
        key = (size, self.family.by_document and n_in_document > 1)
        if key not in self._pictures:
            self._pictures[key] = self._picture(size, n_in_document)
        found = self._pictures[key]
        if isinstance(found, str):
            raise PictureRefused(
                f"the processor takes no picture of {size[0]} x {size[1]} pixels: {found}",
                where=self.name,
                fix="Leave such pictures out, or crop them.",
            )
        return found

    def _picture(self, size: Size, n_in_document: int) -> Picture | str:
        n = n_in_document if self.family.by_document else 1
        try:
            facts = self.family.facts_of_size(self.real, self._facts_arguments, size, n)
        except ValueError as err:
            return str(err)
        is_odd = min(size) < _ODD_EDGE or max(size) > _ODD_RATIO * min(size)
        if facts is not None and not is_odd:
            text = self.real.replace_image_token(facts, 0)
            return collapsed(text, self.image_token, self.family.grid_of(facts, 0))
        try:
            facts, replacements = self.run([Image.new("RGB", size, BLANK)] * n)
        except Exception as err:  # what an image processor raises is its own affair
            return f"{type(err).__name__}: {' '.join(str(err).split())[:200]}"
        return collapsed(replacements[0], self.image_token, self.family.grid_of(facts, 0))

    @cached_property
    def _facts_arguments(self) -> dict[str, Any]:
        return {k: v for k, v in self.arguments.items() if k != "return_tensors"}

    def run(self, pictures: Sequence[Image.Image], **changed: object) -> tuple[Arrays, list[str]]:
        """The processor's own work on the pictures of one document: all arrays, and the texts.

        `changed`: settings of its image processor that are others this time.
        """
        options = {**self.arguments, **changed}
        found, replacements = self.real._process_images([list(pictures)], **options)
        return found, [str(text) for text in replacements]

    def arrays(self, pictures: Sequence[Image.Image], **changed: object) -> list[Arrays]:
        """The model's arrays for the pictures of one document, one entry a picture."""
        if not self.family.by_document or not pictures:
            return [self._named(self.run([picture], **changed)[0]) for picture in pictures]
        every = self._named(self.run(pictures, **changed)[0])
        own = [name for name in every if name != "batch_num_images"]
        return [{name: every[name][i : i + 1] for name in own} for i in range(len(pictures))]

    def _named(self, found: Mapping[str, Any]) -> Arrays:
        unused = {*self.real.unused_input_names, "num_patches", "rows", "cols", "num_crops"}
        return {name: _array(value) for name, value in found.items() if name not in unused}

    def join(self, arrays: Sequence[Arrays], place: Place) -> Arrays:
        """The arrays of a batch from those of its pictures, in reading order."""
        return self.family.join(arrays, place)

    def ids(self, text: str, pictures: Sequence[Image.Image]) -> list[int]:
        """What the whole processor makes of a rendered conversation: the oracle."""
        options: dict[str, Any] = {}
        bos = self.real.tokenizer.bos_token
        if bos is not None and text.startswith(bos):
            options["add_special_tokens"] = False  # as apply_chat_template does
        images = [list(pictures)] if pictures else None
        found = self.real(text=[text], images=images, **options)["input_ids"]
        return [int(i) for i in found[0]]


def collapsed(text: str, token: str, grid: tuple[int, ...]) -> Picture:
    """The replacement with every run of image tokens as one token, and the runs' lengths."""
    runs: list[int] = []

    def one(match: re.Match[str]) -> str:
        runs.append(len(match.group()) // len(token))
        return token

    short = re.sub(f"(?:{re.escape(token)})+", one, text)
    return Picture(short, tuple(runs), grid)


def _array(value: Any) -> np.ndarray[Any, Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, list | tuple):
        value = [_array(one) for one in value]
    return np.asarray(value)
