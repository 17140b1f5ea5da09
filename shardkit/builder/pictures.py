"""Pictures of a part under a processor: their sizes, their places, and a check on both.

Tokens are counted without pixels. So rows are compared with what the whole processor makes of
them, pictures and all: the first of every process, and one in 1,024 after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shardkit.conversation import Conversation, Exchange, Reject
from shardkit.errors import ProcessorError
from shardkit.format.samples import StoredImage
from shardkit.images import decode_rgb, upright_size
from shardkit.processors import VisionProcessor
from shardkit.tokens import ChatTemplate
from shardkit.tokens.encoded import Encoded
from shardkit.tokens.pictures import Placed, Size
from shardkit.tokens.preference import halves_of
from shardkit.tokens.train_rules import TrainRules

FIRST_CHECKED = 4
"""Rows with pictures of every process that are compared."""
CHECKED_SHARE = 1024
"""One of so many rows of every process, with pictures or without, is compared too."""

Images = Mapping[int, tuple[StoredImage, ...]]
"""The images of rows, by position in a batch."""


def sizes_of(images: Images, kept: Sequence[int]) -> dict[int, list[Size]]:
    """The upright sizes of the pictures of the rows that are encoded, by place in `kept`."""
    return {
        k: [upright_size(image.data) for image in images[i]]
        for k, i in enumerate(kept)
        if i in images
    }


def placed(images: tuple[StoredImage, ...], places: Sequence[Placed]) -> tuple[StoredImage, ...]:
    """The images that are left in a row, with what stands for them."""
    return tuple(
        replace(image, tokens=place.tokens, grid=place.grid, spans=place.spans)
        for image, place in zip(images, places, strict=False)
    )


@dataclass
class ProcessorCheck:
    """Compares rows with the whole processor; one of a process."""

    processor: VisionProcessor
    template: ChatTemplate
    rules: TrainRules
    _n_seen: int = 0
    _to_check: int = field(default=FIRST_CHECKED, repr=False)

    def __call__(
        self,
        conversations: Sequence[Conversation | Exchange],
        images: Images,
        kept: Sequence[int],
        encoded: Encoded,
        wheres: Sequence[str],
    ) -> None:
        """Check some of the rows of a batch; raises ProcessorError at a difference."""
        starts = encoded.samples.starts
        times = np.bincount(encoded.kept, minlength=len(conversations))
        for sample, place in enumerate(encoded.kept.tolist()):
            one = conversations[place]
            own = images.get(kept[place], ())
            self._n_seen += 1
            is_due = self._n_seen % CHECKED_SHARE == 0 or (bool(own) and self._to_check > 0)
            if times[place] > 1:
                continue  # the pieces of a row that is split are not what the row renders to
            if not is_due or (isinstance(one, Conversation) and one.kind != "chat"):
                continue
            self._to_check -= bool(own)
            halves = halves_of(one)
            begins = [int(starts[sample]), int(starts[sample + 1])]
            if len(halves) > 1 and encoded.samples.segments is not None:
                begins.insert(1, begins[0] + int(encoded.samples.segments["start"][2 * sample + 1]))
            for half, (begin, end) in zip(halves, pairwise(begins), strict=True):
                self._check(half, own, encoded.samples.ids[begin:end], wheres[place])

    def _check(
        self,
        one: Conversation | Exchange,
        images: tuple[StoredImage, ...],
        ids: NDArray[np.int32],
        where: str,
    ) -> None:
        conversation = one.conversation if isinstance(one, Exchange) else one
        rendered = self.template.render(conversation, self.rules)
        if isinstance(rendered, Reject):
            return
        pictures = [decode_rgb(image.data) for image in images]
        expected = self.processor.ids(rendered.text, pictures)[: len(ids)]
        if expected == ids.tolist():
            return
        if pictures:
            _, texts = self.processor.run(pictures)
            for image, picture, text in zip(images, pictures, texts, strict=True):
                ours = self.processor.picture(picture.size, len(pictures)).n_tokens
                theirs = text.count(self.processor.image_token)
                if ours != theirs:
                    raise ProcessorError(
                        f"{picture.width} x {picture.height} pixels were counted as other tokens "
                        "than the processor makes",
                        where=f"{where}, picture {image.name}",
                        expected=f"{theirs} tokens",
                        found=f"{ours} tokens",
                        fix="Report this processor: its entry in shardkit.processors is wrong.",
                    )
        raise ProcessorError(
            "the ids of a row are not those of the processor",
            where=where,
            expected=str(_around(expected, ids.tolist())),
            found=str(_around(ids.tolist(), expected)),
            fix="Report this processor and template.",
        )


def _around(ours: list[int], theirs: list[int]) -> list[int]:
    """Up to 12 ids around the first difference, four of them before it."""
    pairs = zip(ours, theirs, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    return ours[max(0, at - 4) : at + 8]
