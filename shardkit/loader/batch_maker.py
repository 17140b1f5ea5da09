"""Padded batches of any kind of rows, with memory that is used again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from shardkit.format.recipe import PREFERENCE
from shardkit.loader.collate import Batch, Buffers, Padding, RawBatch, make_batch
from shardkit.loader.pairs import SIDES, PairLayout, make_pairs
from shardkit.loader.stats import Timings

_IDS = ("input_ids", *(f"{side}_input_ids" for side in SIDES))


@dataclass(frozen=True, slots=True)
class BatchMaker:
    """make_batch with its options, and memory that is used again, for one thread."""

    padding: Padding
    always: tuple[str, ...] = ()
    finish: Callable[[Batch], None] | None = None
    """Completes a padded batch in place (see vision.py)."""
    pair_layout: PairLayout = "apart"
    buffers: Buffers = field(default_factory=Buffers)

    def __call__(self, raw: RawBatch) -> tuple[Batch, Timings | None]:
        """The padded batch, and what making it took."""
        timings = raw.timings
        if timings is None:
            return self._batch(raw), None
        began = time.perf_counter()
        batch = self._batch(raw)
        timings.collate_s = time.perf_counter() - began
        timings.n_tokens = sum(raw.lengths)
        timings.n_places = sum(ids.numel() for name, ids in batch.items() if name in _IDS)
        return batch, timings

    def _batch(self, raw: RawBatch) -> Batch:
        if raw.task == PREFERENCE:
            return make_pairs(
                raw,
                self.padding,
                layout=self.pair_layout,
                always=self.always,
                buffers=self.buffers,
                finish=self.finish,
            )
        batch = make_batch(raw, self.padding, always=self.always, buffers=self.buffers)
        if self.finish is not None:
            self.finish(batch)
        return batch
