"""The pictures of a shard: do they decode, and are as many tokens there as the processor makes?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardkit.check.expected import ShardCheck
from shardkit.errors import PictureRefused, ShardkitError
from shardkit.format.render import SampleImage
from shardkit.images import BadImage, measure


class PictureCheck:
    """Checks the pictures of a shard, sample by sample."""

    def __init__(self, check: ShardCheck) -> None:
        self.check = check
        self.shard = check.shard
        self.expected = check.expected

    def run(self, i: int) -> None:
        """Check the pictures of sample i."""
        try:
            meta, images = self.shard.meta(i), self.shard.images(i)
        except ShardkitError as err:
            self.check.say("image", err.message_line(), i)
            return
        self.check.report.n_images += len(images)
        listed = meta.images if meta else ()
        if len(listed) != len(images):
            self.check.say("image", f"{len(images)} images, {len(listed)} in the JSON member", i)
            return
        sizes: list[tuple[int, int] | None] = []
        for about, data in zip(listed, images, strict=True):
            try:
                found = measure(data)
            except BadImage as err:
                self.check.say("image", f"{about.name}: {err.detail}", i)
                sizes.append(None)
                continue
            sizes.append(found.upright)
            if (found.width, found.height) != (about.width, about.height):
                self.check.say("image", f"{about.name} is {found.width} x {found.height}", i)
        if self.expected.picture_token is not None:
            self._pictures(i, listed, sizes, self.expected.picture_token)

    def _pictures(
        self,
        i: int,
        listed: Sequence[SampleImage],
        sizes: Sequence[tuple[int, int] | None],
        token: int,
    ) -> None:
        """The tokens of pictures: in their places, and as many as the processor makes."""
        try:
            is_image = self.shard.tokens(i)[0] == token
        except ShardkitError:
            return  # said elsewhere
        wanted = sum((about.tokens or 0) * len(about.spans) for about in listed)
        found = int(np.count_nonzero(is_image))
        if found != wanted:
            self.check.say("picture", f"{found} image tokens, its pictures have {wanted}", i)
        for about in listed:
            for first, length in about.spans:
                n = int(np.count_nonzero(is_image[first : first + length]))
                if n != about.tokens or first + length > len(is_image):
                    self.check.say("picture", f"{about.name} has {n} tokens, not {about.tokens}", i)
        if self.expected.processor is None:
            return
        counts = self._pictures_together(i, listed)
        for about, size, together in zip(listed, sizes, counts, strict=True):
            if size is None:
                continue
            try:
                picture = self.expected.processor.picture(size, together)
            except PictureRefused as err:
                self.check.say("picture", f"{about.name}: {err.message}", i)
                continue
            if (picture.n_tokens, picture.grid) != (about.tokens, tuple(about.grid)):
                made = f"the processor makes {picture.n_tokens} {list(picture.grid)}"
                has = f"{about.name} of {size[0]} x {size[1]} has {about.tokens}"
                self.check.say("picture", f"{has} {list(about.grid)}, {made}", i)

    def _pictures_together(self, i: int, listed: Sequence[SampleImage]) -> list[int]:
        """How many pictures the document of each picture has."""
        if self.shard.segments is None or not self.expected.rules.is_packed:
            return [len(listed)] * len(listed)
        counts = self.shard.segments_of(i)["n_images"].tolist()
        return [n for n in counts for _ in range(n)][: len(listed)]
