"""Numbers of a dataset against a slow count of its tokens, one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic import make_dataset, make_recipe

from shardkit.dataset import open_dataset
from shardkit.format.shard import Shard
from shardkit.report import summarize
from shardkit.report.stats import histogram

N_IMAGES = {1: 2, 5: 1}


@pytest.mark.parametrize("packed", [False, True])
def test_summary_is_what_counting_gives(tmp_path: Path, packed: bool) -> None:
    """Every number, from the token rows themselves; an image fills its --image-tokens."""
    recipe = make_recipe(packed=packed, images=True)
    make_dataset(tmp_path, [7, 5, 8], packed=packed, n_images=N_IMAGES, recipe=recipe)
    lengths, n_supervised, n_bytes, n_segments, n_split = [], 0, 0, 0, 0
    for number in range(3):
        shard = Shard.open(tmp_path / f"shard-{number:05d}.tar")
        for i in range(shard.n_samples):
            ids, labels = shard.tokens(i)[:2].tolist()
            lengths.append(len(ids))
            n_supervised += sum(label != -100 for label in labels)
            n_bytes += len(shard.span(i))
            if packed:
                n_segments += len(shard.segments_of(i))
                n_split += sum(int(s["first"]) > 0 for s in shard.segments_of(i))
        shard.close()

    found = summarize(open_dataset(tmp_path))

    assert (found.n_samples, found.n_tokens, found.n_images) == (20, sum(lengths), 3)
    assert (found.n_supervised, found.n_bytes) == (n_supervised, n_bytes)
    assert found.mean_length == sum(lengths) / 20
    assert (found.n_segments, found.n_split) == (n_segments, n_split)
    assert found.percentiles["p0"] == min(lengths)
    assert found.percentiles["p50"] in sorted(lengths)[9:11]
    assert found.percentiles["p100"] == max(lengths)
    assert sum(bar.n for bar in found.histogram) == 20
    for bar in found.histogram:
        assert bar.n == sum(bar.low <= length < bar.high for length in lengths)
    if packed:
        assert found.filled == (sum(lengths) + 3 * (4 - 1)) / (20 * recipe["max_length"])
    else:
        assert found.filled is None


@pytest.mark.parametrize("top", [0, 1, 11, 12, 99, 2048, 131_072])
def test_bars_have_one_round_width(top: int) -> None:
    """They lie end to end from 0, a dozen or so, and hold every length once."""
    lengths = np.random.default_rng(top).integers(0, top + 1, 500)
    lengths[0] = top
    bars = histogram(lengths)
    widths = {bar.high - bar.low for bar in bars}
    assert len(widths) == 1
    assert str(widths.pop()).rstrip("0") in {"1", "2", "4", "5", "8"}
    assert [bar.low for bar in bars] == [0, *(bar.high for bar in bars[:-1])]
    assert bars[-1].low <= top < bars[-1].high
    assert len(bars) <= 13
    assert [bar.n for bar in bars] == [
        sum(bar.low <= n < bar.high for n in lengths.tolist()) for bar in bars
    ]


def test_no_bars_of_nothing() -> None:
    """No lengths, no bars."""
    assert histogram(np.zeros(0, np.int64)) == []
