"""A dataset as JSON lines: one object a row, for whatever reads JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np

from shardkit.dataset import open_dataset
from shardkit.errors import BuildConflict
from shardkit.format.atomic import appear
from shardkit.integrations.hf_export import image_column, rows_of
from shardkit.options import FilePath, checked
from shardkit.storage.open import path_here


@checked
def export_jsonl(
    dataset: FilePath,
    out: FilePath,
    *,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: FilePath | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a file with a row a line, with the keys of export_hf; the number of rows.

    The file appears when it is whole. Raises BuildConflict when it is there already, CorruptShard.
    """
    out = path_here(out, "the output of an export")
    if out.exists():
        raise BuildConflict("the output is there already", where=str(out), fix="Give a new file.")
    opened = open_dataset(dataset, storage_options=storage_options, cache_dir=cache_dir)
    encoder = msgspec.json.Encoder(enc_hook=_plain)
    n_rows, n_total = 0, opened.manifest.n_samples
    out.parent.mkdir(parents=True, exist_ok=True)
    with appear(out) as file:
        for row in rows_of(opened, image_column(opened)):
            file.write(encoder.encode(row) + b"\n")
            n_rows += 1
            if progress is not None and (n_rows % 1000 == 0 or n_rows == n_total):
                progress(n_rows, n_total)
    return n_rows


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | np.integer):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")
