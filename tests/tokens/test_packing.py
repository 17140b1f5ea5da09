"""Packing: nothing lost, nothing too long, no image apart from its placeholder."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit.errors import UsageError
from shardkit.format.samples import Samples, StoredImage
from shardkit.tokens import RULES, pack
from shardkit.tokens.best_fit import best_fit

PLACEHOLDER = -200


def _samples(lengths: list[int], images: list[list[int]] | None = None) -> Samples:
    """Samples with ids 1000 * sample + position; `images`: places of placeholders per sample."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.concatenate(
        [np.empty(0, np.int64), *(1000 * (i + 1) + np.arange(n) for i, n in enumerate(lengths))]
    ).astype(np.int32)
    stored: tuple[tuple[StoredImage, ...], ...] = ()
    if images is not None:
        for i, places in enumerate(images):
            ids[starts[i] + np.array(places, np.int64)] = PLACEHOLDER
        stored = tuple(
            tuple(StoredImage(f"{i}-{k}.jpg", b"", "jpg", 1, 1) for k in range(len(places)))
            for i, places in enumerate(images)
        )
    n = len(lengths)
    return Samples(
        ids=ids,
        labels=np.where(ids % 2 == 0, ids, -100).astype(np.int32),
        starts=starts,
        source=np.arange(n, dtype=np.uint32) % 3,
        record=np.arange(n, dtype=np.uint64) + 10,
        n_cut=np.arange(n, dtype=np.uint32),
        images=stored,
        row_ids=tuple((f"id{i}",) for i in range(n)),
    )


@st.composite
def _inputs(draw: st.DrawFn) -> tuple[Samples, int, int, int | None]:
    """Samples that fit, max_length, image_tokens, max_images."""
    image_tokens = draw(st.sampled_from([1, 1, 3, 7]))
    max_length = draw(st.integers(image_tokens, 24))
    lengths, places = [], []
    for _ in range(draw(st.integers(0, 12))):
        n = draw(st.integers(1, max_length))
        room = (max_length - n) // (image_tokens - 1) if image_tokens > 1 else 2
        chosen = draw(st.lists(st.integers(0, n - 1), max_size=min(2, room), unique=True))
        lengths.append(n)
        places.append(sorted(chosen))
    has_images = any(places)
    max_images = draw(st.sampled_from([None, 2, 3])) if has_images else None
    return _samples(lengths, places if has_images else None), max_length, image_tokens, max_images


@settings(deadline=None, max_examples=300)
@given(_inputs(), st.sampled_from(["concat", "best-fit"]))
def test_every_token_and_image_is_in_one_place(
    given_: tuple[Samples, int, int, int | None], rule: str
) -> None:
    """The segments, read back, are the samples: ids, labels, images, source rows, row ids."""
    samples, max_length, image_tokens, max_images = given_

    packed = pack(
        samples, rule=rule, max_length=max_length, image_tokens=image_tokens, max_images=max_images
    )

    _check_limits(packed, max_length, image_tokens, max_images)
    assert packed.segments is not None
    parts: dict[int, list[tuple[int, list[int], list[int], list[str]]]] = {}
    taken = [0] * len(packed)
    order = [0] * len(packed)
    for segment in packed.segments:
        number, record = int(segment["sample"]), int(segment["record"]) - 10
        begin = int(packed.starts[number] + segment["start"])
        stretch = slice(begin, begin + int(segment["length"]))
        n = int(segment["n_images"])
        names = [i.name for i in packed.images_of(number)[taken[number] : taken[number] + n]]
        taken[number] += n
        assert packed.row_ids[number][order[number]] == f"id{record}"
        order[number] += 1
        assert int(segment["source"]) == record % 3
        part = (
            int(segment["first"]),
            packed.ids[stretch].tolist(),
            packed.labels[stretch].tolist(),
        )
        parts.setdefault(record, []).append((*part, names))
    assert len(parts) == len(samples)
    for i, (a, b) in enumerate(pairwise(samples.starts.tolist())):
        pieces = sorted(parts[i])
        assert [first for first, *_ in pieces] == _firsts([len(ids) for _, ids, _, _ in pieces])
        assert [t for _, ids, _, _ in pieces for t in ids] == samples.ids[a:b].tolist()
        assert [t for _, _, labels, _ in pieces for t in labels] == samples.labels[a:b].tolist()
        names = [name for *_, found in pieces for name in found]
        assert names == [image.name for image in samples.images_of(i)]
        assert rule == "concat" or len(pieces) == 1
    assert int(packed.n_cut.sum()) == int(samples.n_cut.sum())


def _firsts(lengths: list[int]) -> list[int]:
    return [sum(lengths[:k]) for k in range(len(lengths))]


def _check_limits(
    packed: Samples, max_length: int, image_tokens: int, max_images: int | None
) -> None:
    assert packed.segments is not None
    for number, (a, b) in enumerate(pairwise(packed.starts.tolist())):
        n_images = int((packed.ids[a:b] == PLACEHOLDER).sum()) if packed.images else 0
        assert 0 < (b - a) + n_images * (image_tokens - 1) <= max_length
        assert len(packed.images_of(number)) == n_images
        assert max_images is None or n_images <= max_images
        mine = packed.segments[packed.segments["sample"] == number]
        ends = np.cumsum(mine["length"])
        assert mine["start"].tolist() == [0, *ends[:-1].tolist()]
        assert int(ends[-1]) == b - a
        assert int(packed.source[number]) == int(mine["source"][0])
        assert int(packed.record[number]) == int(mine["record"][0])


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 20))
def test_concat_is_one_run_cut_every_max_length(lengths: list[int], max_length: int) -> None:
    """Without images: the concatenation, and only the last pack is short."""
    samples = _samples(lengths)

    packed = pack(samples, rule="concat", max_length=max_length)

    assert packed.ids.tolist() == samples.ids.tolist()
    assert (packed.lengths[:-1] == max_length).all()
    assert len(packed) == -(-sum(lengths) // max_length)


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), max_size=60))
def test_best_fit_is_best_fit_decreasing(sizes: list[int]) -> None:
    """The bins are those of the obvious program that looks at every bin."""
    capacity = 30
    found = best_fit(np.array(sizes, np.int64), capacity)

    rooms: list[int] = []
    chosen = [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        fitting = [room for room in rooms if room >= sizes[i]]
        if not fitting:
            rooms.append(capacity)
            fitting = [capacity]
        # of equal rooms any is as good: compare the fill, not the bin's name
        k = len(rooms) - 1 - rooms[::-1].index(min(fitting))
        rooms[k] -= sizes[i]
        chosen[i] = k
    fills = np.bincount(found, sizes, len(rooms)).astype(int)
    assert sorted(fills.tolist()) == sorted(capacity - room for room in rooms)
    assert found.max(initial=-1) + 1 == len(rooms)


def test_best_fit_leaves_samples_in_their_order() -> None:
    """Packs are in the order of their first sample, and samples in file order inside."""
    packed = pack(_samples([4, 6, 10, 6, 4]), rule="best-fit", max_length=10)

    assert packed.segments is not None
    found = packed.segments[["sample", "record"]].tolist()
    assert [record for _, record in found] in ([10, 11, 12, 13, 14], [10, 13, 11, 14, 12])
    firsts = [min(r for s, r in found if s == number) for number in range(len(packed))]
    assert firsts == sorted(firsts)
    for number in range(len(packed)):
        records = [r for s, r in found if s == number]
        assert records == sorted(records)


def test_packing_is_the_same_every_time() -> None:
    """The packs are a function of the samples and the options."""
    rng = np.random.RandomState(5)
    samples = _samples(rng.randint(1, 300, 500).tolist())

    one, two = (pack(samples, rule="best-fit", max_length=512) for _ in range(2))

    assert np.array_equal(one.ids, two.ids)
    assert one.segments is not None
    assert two.segments is not None
    assert np.array_equal(one.segments, two.segments)


def test_segments_that_are_there_are_packed_as_they_are() -> None:
    """A row that was packed elsewhere is packed segment by segment: its borders stay borders."""
    once = pack(_samples([3, 5, 4, 6]), rule="best-fit", max_length=9)

    again = pack(once, rule="best-fit", max_length=18)

    assert again.segments is not None
    assert sorted(again.segments["length"].tolist()) == [3, 4, 5, 6]
    assert sorted(again.segments["record"].tolist()) == [10, 11, 12, 13]
    assert len(again) == 1
    ids = [name for names in again.row_ids for name in names]
    assert [f"id{r - 10}" for r in again.segments["record"]] == ids


def test_none_gives_the_samples_back() -> None:
    """No packing: the same samples, without segments."""
    samples = _samples([3, 4])

    assert pack(samples, rule="none", max_length=None) is samples


def test_no_samples_make_no_packs() -> None:
    """An empty part packs to nothing."""
    for rule in RULES:
        assert len(pack(_samples([]), rule=rule, max_length=8)) == 0


@pytest.mark.parametrize(
    ("samples", "options", "complaint"),
    [
        (_samples([9]), {"rule": "best-fit", "max_length": 8}, "longer than a pack"),
        (_samples([9]), {"rule": "concat", "max_length": None}, "needs a length"),
        (_samples([9]), {"rule": "first-fit", "max_length": 8}, "no such packing rule"),
        (
            _samples([3], [[1]]),
            {"rule": "concat", "max_length": 8, "image_tokens": 9},
            "image does not fit",
        ),
        (
            _samples([3], [[0, 1]]),
            {"rule": "best-fit", "max_length": 8, "max_images": 1},
            "cannot hold the images",
        ),
        (
            _samples([3], [[0]]),
            {"rule": "concat", "max_length": 8, "max_images": 0},
            "cannot hold the images",
        ),
        (
            replace(_samples([3], [[0]]), images=((),)),
            {"rule": "concat", "max_length": 8},
            "more placeholders than images",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused(
    samples: Samples, options: dict[str, object], complaint: str
) -> None:
    """The error names what does not fit and the option to change."""
    with pytest.raises(UsageError, match=complaint) as caught:
        pack(samples, **options)  # type: ignore[arg-type]
    assert caught.value.fix


def test_best_fit_is_full() -> None:
    """100,000 samples of Alpaca-like lengths: nearly all packs are full.

    Should each item look at all bins, this takes hours.
    """
    rng = np.random.RandomState(1)
    sizes = np.clip(rng.lognormal(4.4, 0.8, 100_000).astype(np.int64), 8, 2048)

    bins = best_fit(sizes, 2048)

    fills = np.bincount(bins, sizes)
    assert fills.max() <= 2048
    assert fills.sum() / (2048 * len(fills)) > 0.995


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_pictures_of_many_tokens_are_never_cut(data: st.DataObject) -> None:
    """Concat ends a pack before a picture that does not fit; spans move with their tokens."""
    max_length = data.draw(st.integers(6, 12))
    spans = data.draw(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 6)), max_size=8))
    rows, images = [], []
    for i, (before, n) in enumerate(spans):
        rows.append([1000 + i] * before + [-i - 1] * n + [2000 + i])
        images.append((replace(_image(i), tokens=n, spans=((before, n),)),))
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    numbers = np.arange(len(rows))
    ids = np.array([i for row in rows for i in row], np.int32)
    samples = Samples(
        ids, ids, starts, numbers.astype(np.uint32), numbers.astype(np.uint64),
        np.zeros(len(rows), np.uint32), tuple(images), tuple(("x",) for _ in rows),
    )  # fmt: skip

    packed = pack(samples, rule="concat", max_length=max_length)

    assert packed.ids.tolist() == ids.tolist()
    assert packed.lengths.max(initial=0) <= max_length
    for i, held in enumerate(packed.images):
        row = packed.ids[packed.starts[i] : packed.starts[i + 1]]
        for image in held:
            ((first, n),) = image.spans
            assert row[first : first + n].tolist() == [-int(image.name) - 1] * n


def _image(i: int) -> StoredImage:
    return StoredImage(str(i), b"", "jpg", 1, 1)
