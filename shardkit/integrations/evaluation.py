"""A pass over all rows of a loader for evaluation in Trainer: every row counts once.

The last global batch is filled with rows without labels, so that ranks make equally many steps.
What the ranks gather of it is cut again by accelerate (`gather_for_metrics`), which asks the
active data loader how many rows of the last batch are real: this is such a loader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from shardkit.integrations.accelerate import AccelerateLoader
from shardkit.loader import ShardLoader
from shardkit.loader.collate import Batch


class Sized:
    """What Trainer asks a loader's dataset for: the samples of an epoch, of all ranks."""

    def __init__(self, loader: ShardLoader) -> None:
        self._n = loader.dataset.n_samples_of(loader.arrangement)

    def __len__(self) -> int:
        if self._n is None:
            raise TypeError("an endless mixture has no len()")
        return self._n


class EvalBatch(dict[str, Any]):
    """What the model takes of a batch: the same number of rows on every rank.

    Trainer may gather it (`include_for_metrics`), so it has the rows that fill the last batch;
    `real` is the same without them, unless there are no others.
    """

    real: dict[str, Any]


class EvalBatches(AccelerateLoader):
    """One pass over a loader's rows, which leaves the loader as it was.

    What accelerate gathers of the last batch is cut again.
    """

    def __init__(self, loader: ShardLoader, model_inputs: Callable[[Batch], Batch]) -> None:
        super().__init__(loader.for_eval())
        self.dataset = Sized(self.loader)
        self.batch_size = loader.batch_size
        self._model_inputs = model_inputs

    def __iter__(self) -> Iterator[EvalBatch]:
        for batch in super().__iter__():
            made = EvalBatch(self._model_inputs(batch))
            real = _without_padding_rows(batch)
            made.real = made if real is batch else self._model_inputs(real)
            yield made


_PER_TOKEN = frozenset(
    {"input_ids", "labels", "attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids"}
)
"""Names with the shape (..., B, T)."""


def _without_padding_rows(batch: Batch) -> Batch:
    """The batch without its last `n_padding_rows` rows; whole when it has no others.

    Rows of preferences stay: their trainers leave these out (they have them in both halves).
    """
    if "completion_mask" in batch or "label" in batch:
        return batch
    n_rows, width = batch["input_ids"].shape
    n_kept = n_rows - batch.get("n_padding_rows", 0)
    if n_kept in (0, n_rows):
        return batch
    cut = {
        name: batch[name][..., :n_kept, :] if name in _PER_TOKEN else batch[name] for name in batch
    }
    if "cu_seqlens" in batch:
        borders = batch["cu_seqlens"]
        cut["cu_seqlens"] = borders[borders <= n_kept * width]
        cut["max_seqlen"] = int(cut["cu_seqlens"].diff().max())
    return cut


def padded_rows(values: Any, n_rows: int, fill: int) -> Any:
    """Tensors (n, ...), in whatever tuples they are, with rows of `fill` up to `n_rows`."""
    if isinstance(values, (tuple, list)):
        return type(values)(padded_rows(value, n_rows, fill) for value in values)
    if not isinstance(values, torch.Tensor) or not values.dim() or len(values) >= n_rows:
        return values
    missing = values.new_full((n_rows - len(values), *values.shape[1:]), fill)
    return torch.cat((values, missing))
