"""A dataset as LLaMA-Factory's `tokenized_path`: rows that it neither tokenises nor packs again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from shardkit.dataset import Dataset, open_dataset
from shardkit.errors import UsageError
from shardkit.format.recipe import SFT, RowRules
from shardkit.format.samples import IGNORE_INDEX
from shardkit.integrations.hf_export import Told, the_datasets, write_folder
from shardkit.integrations.hf_export import rows_of as plain_rows_of
from shardkit.integrations.outputs import new_folder
from shardkit.options import FilePath, checked

MULTIPLE = 8
"""LLaMA-Factory pads input_ids to a multiple of this, and position_ids not."""


@checked
def export_llamafactory(
    dataset: FilePath,
    out: FilePath,
    *,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: FilePath | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write what LLaMA-Factory reads as `tokenized_path` for its stages sft and pt.

    Columns: input_ids (list of int32), labels (list of int64), attention_mask (list of int32). Of
    packed data (`packing: true` and `neat_packing: true` there) the mask holds the number of each
    token's document, from 1 on, and position_ids (list of int64) begin anew in each; the first
    label of a document is -100, and all rows are padded to one length above max_length, as
    LLaMA-Factory packs them. Returns the number of rows. Raises BuildConflict when `out` is not
    empty, MissingPackage, CorruptShard, UsageError for pictures and for pairs of answers.
    """
    out = new_folder(out)
    opened = open_dataset(dataset, storage_options=storage_options, cache_dir=cache_dir)
    _refuse_what_has_no_column(opened)
    rows = {"dataset": opened, "progress": Told(progress)}
    features = _features(opened.manifest.is_packed)
    return write_folder(out, rows_of, rows, features, opened.manifest.content)


def rows_of(dataset: Dataset, progress: Told | None = None) -> Iterator[dict[str, object]]:
    """Every row in order, as the columns that export_llamafactory names."""
    manifest = dataset.manifest
    longest = max((shard.longest for shard in manifest.shards), default=0)
    limit = manifest.recipe["max_length"] or longest  # rows that came packed may have no limit
    width = limit // MULTIPLE * MULTIPLE + MULTIPLE
    for plain in plain_rows_of(dataset, None, progress):
        row: dict[str, Any] = {**plain}
        if manifest.is_packed:
            yield _packed(row, width, manifest.pad_token_id)
        else:
            mask = np.ones(len(row["input_ids"]), np.int32)
            yield {"input_ids": row["input_ids"], "labels": row["labels"], "attention_mask": mask}


def _packed(row: dict[str, Any], width: int, pad: int) -> dict[str, object]:
    lengths = np.asarray(row["seq_lengths"])
    labels = row["labels"].copy()
    labels[row["cumulative_len"][:-1]] = IGNORE_INDEX  # no document is taught to begin the next
    columns = {
        "input_ids": (row["input_ids"], pad),
        "labels": (labels, IGNORE_INDEX),
        "attention_mask": (np.repeat(np.arange(1, len(lengths) + 1), lengths), 0),
        "position_ids": (row["position_ids"], 0),
    }
    return {
        name: np.pad(values, (0, width - len(values)), constant_values=fill)
        for name, (values, fill) in columns.items()
    }


def _refuse_what_has_no_column(dataset: Dataset) -> None:
    manifest = dataset.manifest
    task = RowRules.of(manifest.recipe).task
    if manifest.n_images or task != SFT:
        raise UsageError(
            "LLaMA-Factory's tokenised rows have no column for this",
            where=dataset.root,
            found="pictures" if manifest.n_images else f"the task {task}",
            fix="Give LLaMA-Factory the source, or train with a loop or trainer of shardkit.",
        )


def _features(is_packed: bool) -> Any:
    datasets = the_datasets()
    kinds = {"input_ids": "int32", "labels": "int64", "attention_mask": "int32"}
    if is_packed:
        kinds["position_ids"] = "int64"
    return datasets.Features(
        {name: datasets.Sequence(datasets.Value(kind)) for name, kind in kinds.items()}
    )
