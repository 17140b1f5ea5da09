"""The rows as another max length or packing would make them: layout of lengths, no token moved."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import UsageError
from shardkit.report.plan.rows import Documents, Ints, Rows


def remade(
    documents: Documents,
    *,
    max_length: int | None,
    packing: str,
    n_shards: int,
    scale: float,
) -> tuple[Rows, Ints]:
    """The rows of the same documents laid out anew, and how many each of `n_shards` shards has.

    `scale`: rows of all shards for each one that was read. Documents that are longer are cut;
    what was cut when the data was packed stays so, and rows that lose all their labels are not
    taken out, so that figures are close to those of `shardkit repack`, not equal. Where only some
    shards were read (`scale` above 1), each shard stands for all rows that were laid out. Raises
    UsageError for packs without a length.
    """
    from shardkit.tokens.layout import RULES, ImageSpans, Limits, Units

    if RULES[packing].shares_rows and max_length is None:
        raise UsageError(
            f"--packing {packing} needs --max-length",
            fix="Say how long a packed row is: --max-length 2048.",
        )
    places = documents.length
    limit = int(places.max(initial=1)) if max_length is None else max_length
    cut = np.minimum(places, limit)
    units = Units(cut, cut, np.zeros_like(cut), ImageSpans.none())
    layout = RULES[packing].lay_out(units, Limits(limit))
    n_rows = int(layout.pack[-1]) + 1 if len(layout.pack) else 0
    share = layout.lengths / np.maximum(1, places[layout.unit])

    def summed(values: NDArray[Any]) -> Ints:
        sums = np.bincount(layout.pack, values[layout.unit] * share, n_rows)
        return np.rint(sums).astype(np.int64)

    columns: dict[str, NDArray[Any]] = {
        "length": np.bincount(layout.pack, layout.lengths, n_rows).astype(np.int64),
        "n_supervised": summed(documents.n_supervised),
        "n_images": summed(documents.n_images),
        "n_image_tokens": summed(documents.n_image_tokens),
        "cost2": np.bincount(layout.pack, layout.lengths.astype(np.float64) ** 2, n_rows).astype(
            np.uint64
        ),
    }
    n_total = round(n_rows * scale)
    base, extra = divmod(n_total, n_shards)
    sizes = np.array([base + (i < extra) for i in range(n_shards)], np.int64)
    begins = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if scale <= 1 else sizes * 0
    counts = np.maximum(1, sizes) if scale <= 1 else np.full(n_shards, max(1, n_rows))
    return Rows(columns, begins.astype(np.int64), counts, n_read=n_shards), sizes
