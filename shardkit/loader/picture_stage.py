"""What both ways to treat the pictures of a batch share: threads, and never no picture under ZeRO.

`images.py` is the way of LLaVA-1.5 (one placeholder, an image transform), `vision.py` that of a
dataset that was packed with a processor.
"""

from __future__ import annotations

import io
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import BadInput
from shardkit.format.samples import IGNORE_INDEX
from shardkit.loader.collate import PLAIN_ROWS, Padding, RawBatch, padding_row
from shardkit.loader.options import ImagePad

_BLACK_SIZE = (64, 64)
_Made = TypeVar("_Made")


@dataclass(frozen=True, kw_only=True)
class PictureStage(ABC):
    """What is done with the pictures of a batch before it is padded. `pad`: see `ensure_one`."""

    pad: ImagePad = "none"
    padding: Padding = field(default_factory=Padding)
    n_threads: int = 0
    """Decoding threads; 0: as many as the process has processors, at most 8."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def __call__(self, raw: RawBatch) -> RawBatch:
        """The batch with its placeholders expanded and its pictures decoded."""
        began = time.perf_counter()
        self.expand(raw)
        self.ensure_one(raw)
        self.decode(raw)
        if raw.timings is not None:
            raw.timings.decode_s = time.perf_counter() - began
        return raw

    @abstractmethod
    def expand(self, raw: RawBatch) -> None:
        """Make the rows as long as they are in the model."""

    @abstractmethod
    def decode(self, raw: RawBatch) -> RawBatch:
        """Fill `pixel_values` from the encoded pictures."""

    @property
    @abstractmethod
    def dummy_ids(self) -> NDArray[np.int32]:
        """(n,) the ids that stand for `black_image`."""

    def for_worker(self) -> Self:
        """A stage for a worker: without this process's threads, and with one unless told."""
        return replace(self, n_threads=self.n_threads or 1)

    def ensure_one(self, raw: RawBatch) -> None:
        """Give a batch without pictures one black picture whose tokens add nothing.

        When one rank's micro-batch has pictures and another's has none, ZeRO-1 to 3 crash or give
        silently wrong gradients. So the shortest row gets the tokens of a black picture at its
        end: a document of its own in a pack, else with attention mask 0; labels -100.
        """
        if self.pad == "none" or len(raw.image_rows):
            return
        rows = list(raw.rows)
        if not rows:
            rows.append(padding_row(self.padding.pad_token_id))
            if raw.documents is not None:
                raw.documents = [np.ones(1, np.int64)]
            raw.n_padding_rows, raw.n_made_rows = raw.n_padding_rows - 1, 1
        i = min(range(len(rows)), key=lambda k: len(rows[k]))
        ids = self.dummy_ids
        tail = np.stack([ids, np.full_like(ids, IGNORE_INDEX)])
        if raw.documents is not None:
            documents = list(raw.documents)
            documents[i] = np.append(documents[i], len(ids))
            raw.documents = documents
        row = np.frombuffer(rows[i], np.int32).reshape(PLAIN_ROWS, -1)
        rows[i] = np.concatenate([row, tail], axis=1).ravel().data
        raw.rows = rows
        raw.masked_tails[i] = len(ids)
        raw.images, raw.image_rows = [black_image()], np.array([i])
        raw.image_documents = np.zeros(1, np.int64)

    def mapped(self, make: Callable[[Any], _Made], items: list[Any]) -> list[_Made]:
        """`make` of every item, in threads where there are several items and several threads."""
        one_thread = len(items) == 1 or self._n_threads == 1
        return list(map(make, items) if one_thread else self._pool.map(make, items))

    @cached_property
    def _n_threads(self) -> int:
        return self.n_threads or min(8, len(os.sched_getaffinity(0)))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._n_threads, thread_name_prefix="shardkit-images")


def decoded(decode: Callable[[], _Made], where: Callable[[], str]) -> _Made:
    """What `decode` gives; BadInput that says where a picture is from that it cannot decode."""
    from shardkit.images.decode import BadImage

    try:
        return decode()
    except BadImage as err:
        raise BadInput(
            f"an image cannot be decoded: {err}",
            where=where(),
            fix="It was decoded when it was packed: compare the versions of Pillow.",
        ) from err


def black_image() -> bytes:
    """An encoded black picture."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", _BLACK_SIZE).save(file, "PNG")
    return file.getvalue()
