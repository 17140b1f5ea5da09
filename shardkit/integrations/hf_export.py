"""A dataset in the folder format of Hugging Face datasets, as XTuner's offline tools write it."""

from __future__ import annotations

import importlib
import inspect
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shardkit.dataset import Dataset, open_dataset
from shardkit.errors import MissingPackage, ShardkitError
from shardkit.format.layout import FLAG_DESIRABLE
from shardkit.format.recipe import KTO, PREFERENCE, SFT, RowRules
from shardkit.format.samples import IGNORE_INDEX, position_ids
from shardkit.format.shard import Shard
from shardkit.integrations.outputs import new_folder
from shardkit.options import FilePath, checked


@checked
def export_hf(
    dataset: FilePath,
    out: FilePath,
    *,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: FilePath | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write what `datasets.load_from_disk` and XTuner's `offline_processed_text_folder` read.

    Columns: input_ids (list of int32), labels (list of int64), length (int64); packed data also
    cumulative_len and position_ids, as XTuner reads them, and seq_lengths, as TRL does. A dataset
    with images also has `image`, the name as the record had it, null in rows without one; or
    `images`, lists of them, when a row has several, which XTuner cannot read. Preference rows have
    the columns of TRL's collators instead: prompt_ids, chosen_ids and rejected_ids, or prompt_ids,
    completion_ids and label. `progress` is called with (rows done, all rows). Returns the number
    of rows. Raises BuildConflict when `out` is not empty, UsageError when it is a URL,
    MissingPackage, CorruptShard.
    """
    out = new_folder(out)
    opened = open_dataset(dataset, storage_options=storage_options, cache_dir=cache_dir)
    manifest, column = opened.manifest, image_column(opened)
    task = RowRules.of(manifest.recipe).task
    features = _features(manifest.is_packed, column, task)
    told = Told(progress)
    rows = {"dataset": opened, "image_column": column, "progress": told}
    return write_folder(out, rows_of, rows, features, manifest.content)


def write_folder(
    out: Path, rows_of: Callable[..., Any], arguments: dict[str, Any], features: Any, content: str
) -> int:
    """Write the rows that a generator gives as a folder of datasets; their number."""
    datasets = the_datasets()
    cache = out.parent / f".{out.name}.cache"
    options = {}
    if "fingerprint" in inspect.signature(datasets.Dataset.from_generator).parameters:
        options["fingerprint"] = content[:32]  # not known to datasets 2, which XTuner uses
    try:
        made = datasets.Dataset.from_generator(
            rows_of, features=features, gen_kwargs=arguments, cache_dir=str(cache), **options
        )
        made.save_to_disk(str(out))
    except datasets.exceptions.DatasetGenerationError as err:
        if isinstance(err.__cause__, ShardkitError):
            raise err.__cause__ from None
        raise
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    return len(made)


def image_column(dataset: Dataset) -> str | None:
    """The name of the column for images: `images` when a row has several; None without images."""
    if not dataset.manifest.n_images:
        return None
    most = 0
    for number in range(len(dataset.manifest.shards)):
        shard = dataset.open_shard(number)
        most = max(most, int(shard.index["n_images"].max(initial=0)))
        shard.close()
    return "image" if most == 1 else "images"


def _features(is_packed: bool, image_column: str | None, task: str) -> Any:
    datasets = the_datasets()
    columns = {
        "input_ids": datasets.Sequence(datasets.Value("int32")),
        "labels": datasets.Sequence(datasets.Value("int64")),
        "length": datasets.Value("int64"),
    }
    if task != SFT:
        names = ("prompt", *(("chosen", "rejected") if task == PREFERENCE else ("completion",)))
        columns = {f"{name}_ids": datasets.Sequence(datasets.Value("int32")) for name in names}
        if task == KTO:
            columns["label"] = datasets.Value("bool")
    if is_packed:
        columns["cumulative_len"] = datasets.Sequence(datasets.Value("int64"))
        columns["seq_lengths"] = datasets.Sequence(datasets.Value("int64"))
        columns["position_ids"] = datasets.Sequence(datasets.Value("int64"))
    if image_column == "image":
        columns["image"] = datasets.Value("string")
    elif image_column == "images":
        columns["images"] = datasets.Sequence(datasets.Value("string"))
    return datasets.Features(columns)


class Told:
    """A callback that is no part of what datasets hashes and pickles."""

    def __init__(self, progress: Callable[[int, int], None] | None) -> None:
        self.call = progress

    def __reduce__(self) -> tuple[object, ...]:
        return (Told, (None,))


def rows_of(
    dataset: Dataset, image_column: str | None, progress: Told | None = None
) -> Iterator[dict[str, object]]:
    """Every row in order, as the columns that export_hf names, in NumPy arrays and lists."""
    manifest = dataset.manifest
    tell = progress.call if progress is not None else None
    n_done = 0
    for number in range(len(manifest.shards)):
        shard = dataset.open_shard(number)
        for i in range(shard.n_samples):
            tokens = shard.tokens(i)
            row = _preference(shard, i) or {
                "input_ids": tokens[0],
                "labels": tokens[1].astype("int64"),
                "length": tokens.shape[1],
            }
            if manifest.is_packed:
                lengths = shard.segments_of(i)["length"]
                row["seq_lengths"] = lengths.astype("int64")
                row["cumulative_len"] = [0, *lengths.cumsum().tolist()]
                row["position_ids"] = position_ids(lengths.astype("int64"))
            if image_column is not None:
                meta = shard.meta(i)
                names = [image.name for image in meta.images] if meta else []
                one = names[0] if names else None
                row[image_column] = one if image_column == "image" else names
            yield row
        shard.close()
        n_done += shard.n_samples
        if tell is not None:
            tell(n_done, manifest.n_samples)


def _preference(shard: Shard, i: int) -> dict[str, object]:
    """Prompt and answers of a preference row; empty for other rows."""
    task = RowRules.of(shard.recipe).task
    if task == SFT:
        return {}
    ids, labels = shard.tokens(i)[:2]
    begin = int(np.argmax(labels != IGNORE_INDEX))
    if task == KTO:
        is_good = bool(int(shard.index["flags"][i]) & FLAG_DESIRABLE)
        return {"prompt_ids": ids[:begin], "completion_ids": ids[begin:], "label": is_good}
    border = int(shard.segments_of(i)["length"][0])
    return {
        "prompt_ids": ids[:begin],
        "chosen_ids": ids[begin:border],
        "rejected_ids": ids[border + begin :],
    }


def the_datasets() -> Any:
    """The package `datasets`; raises MissingPackage, which says how to get it."""
    try:
        return importlib.import_module("datasets")
    except ImportError as err:
        raise MissingPackage(
            "this needs Hugging Face datasets", fix='pip install "shardkit[datasets]"'
        ) from err
