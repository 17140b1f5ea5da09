"""The samples of a dataset by number, for map-style code: samplers, exporters, notebooks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset as TorchDataset

from shardkit.dataset import Dataset
from shardkit.format.layout import TOKENS_START
from shardkit.format.recipe import KTO, PREFERENCE, SFT, RowRules
from shardkit.format.samples import position_ids
from shardkit.loader.batch_maker import BatchMaker
from shardkit.loader.collate import PLAIN_ROWS, Batch, Padding, RawBatch, Row
from shardkit.loader.lookup import Block, desirable, image_documents
from shardkit.loader.open_shards import OpenShard
from shardkit.loader.opened import open_expected
from shardkit.loader.options import Pictures, TableOptions, table_options
from shardkit.loader.pairs import row_of_pair, sample_of_pair
from shardkit.loader.reader import Reader
from shardkit.loader.vision import vision_stage_of
from shardkit.options import FilePath, check

MAX_SHARED = 1 << 14
"""Tokens of samples that are converted together: more would leave the processor's cache."""


class ShardTable(TorchDataset[dict[str, Any]]):
    """Every sample of a dataset, in file order; `table[i]` reads and checks one.

    `tokenizer`, `template`, `processor`, `max_length`, `images`, `recheck`, and for a URL
    `storage_options`, `cache_dir` and `cache_limit`: as for ShardDataset. It knows nothing of
    ranks: a torch DistributedSampler, or a trainer's own, shares it out.
    """

    def __init__(self, path: str | Path, **options: Unpack[TableOptions]) -> None:
        check("path", path, FilePath)
        expected, self._access = table_options(options)
        self.member: Dataset = open_expected(path, expected, self._access)
        self._rules = RowRules.of(self.member.manifest.recipe)
        self._padding = Padding(self.member.manifest.pad_token_id)
        self._stage = vision_stage_of(expected.processor, Pictures(), self._padding, [self.member])
        self._ends = np.cumsum(self.member.sizes)
        self._plain_ends: list[int] = self._ends.tolist()
        self._n = self._plain_ends[-1] if self._plain_ends else 0
        self._always_checks = self._access.recheck == "always"
        has_more = self.member.manifest.image_recipe is not None or self._rules.task != SFT
        self._is_plain = self.member.is_local and not self.member.is_compressed and not has_more
        self._reader: Reader | None = None

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Sample i: `input_ids`, `labels` and, of packed data, `position_ids` (int64 (n,)), `key`,
        and `images`, the encoded bytes in reading order, when it has some. A pair of answers has
        `chosen_input_ids`, `chosen_labels`, `rejected_input_ids` and `rejected_labels` instead; a
        labelled answer also its `label`.

        Raises IndexError, and CorruptShard for a sample that does not match its hash.
        """
        number = self._number(i)
        if not self._is_plain:
            return self._any([number])[0]
        held, row = self._place(number, {})
        return _sample_at(held, row, documents=self._rules.has_segments)

    def __getitems__(self, samples: Sequence[int]) -> list[dict[str, Any]]:
        """Several samples at once, as a DataLoader asks for them: short ones share memory."""
        numbers = [self._number(i) for i in samples]
        if not self._is_plain:
            return self._any(numbers)
        shards: dict[int, OpenShard] = {}
        places = [self._place(i, shards) for i in numbers]
        sizes = [held.n_tokens[row] for held, row in places]
        if not self._rules.has_segments and sum(sizes) <= MAX_SHARED:
            return _samples_at(places, sizes)
        return [_sample_at(held, row, documents=self._rules.has_segments) for held, row in places]

    def _number(self, i: int) -> int:
        number, n = index(i), self._n
        if not -n <= number < n:
            raise IndexError(f"sample {i} of a dataset of {n}")
        return number if number >= 0 else number + n

    def _place(self, i: int, shards: dict[int, OpenShard]) -> tuple[OpenShard, int]:
        """The open shard and the row of a sample, its hash checked: of local, uncompressed shards
        without pictures, where nothing else is to be looked up. `shards`: those in use now."""
        number = bisect_right(self._plain_ends, i)
        held = shards.get(number)
        if held is None:
            held = shards[number] = self.reader.open(number)
        row = i - self._plain_ends[number - 1] if number else i
        if (self._always_checks or not held.is_checked[row]) and not held.is_right(row):
            self.reader.refuse(self._find(np.array([i])), 0)
        return held, row

    def _any(self, samples: list[int]) -> list[dict[str, Any]]:
        block = self._find(np.array(samples, np.int64))
        found = []
        for k, row in enumerate(self.reader.read(block, 0, len(samples))):
            documents = block.documents[k] if block.documents else None
            sample = sample_of(row, documents, self._rules)
            sample["key"] = self.reader.key(block, k)
            if self._rules.task == KTO:
                sample["label"] = bool(desirable(block, k, k + 1)[0])
            if block.n_images is not None and block.n_images[k]:
                sample["images"] = [bytes(image) for image in self.reader.images(block, [k])]
                if self._rules.is_packed:
                    sample["image_documents"] = torch.from_numpy(image_documents(block, [k]))
            found.append(sample)
        return found

    def collate(self, samples: Sequence[dict[str, Any]]) -> Batch:
        """The padded batch of some samples, with their `keys`: the `collate_fn` for a DataLoader.

        Images stay encoded (see make_batch), unless the table has a `processor`.
        """
        counts = [len(sample.get("images", ())) for sample in samples]
        raw = raw_of(samples, self._rules)
        raw.images = [image for sample in samples for image in sample.get("images", ())]
        raw.image_rows = np.repeat(np.arange(len(samples)), counts)
        raw.keys = [sample["key"] for sample in samples]
        if self._stage is not None:
            return self._stage.batch_of(samples, raw)
        return BatchMaker(self._padding)(raw)[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    @property
    def reader(self) -> Reader:
        """The reader, which remembers open shards and checked samples."""
        if self._reader is None:
            self._reader = Reader([self.member], self._access)
        return self._reader

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) length of every sample, from the indexes; no token is read.

        Tokens, with images at the size that they have in the model.
        """
        return self._column("length")

    @cached_property
    def n_tokens(self) -> NDArray[np.int64]:
        """(n,) ids of every sample as they are stored, from the indexes."""
        return self._column("n_tokens")

    @cached_property
    def n_images(self) -> NDArray[np.int64]:
        """(n,) images of every sample, from the indexes."""
        return self._column("n_images")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def _column(self, name: str) -> NDArray[np.int64]:
        shards = range(len(self.member.manifest.shards))
        parts = [self.reader.open(k).shard.index[name].astype(np.int64) for k in shards]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def _find(self, samples: NDArray[np.int64]) -> Block:
        shards = np.searchsorted(self._ends, samples, side="right")
        return self.reader.find(shards, samples - (self._ends[shards] - self.member.sizes[shards]))


def _samples_at(places: Sequence[tuple[OpenShard, int]], sizes: list[int]) -> list[dict[str, Any]]:
    """Several short samples: converted at once, cut in native code.

    Of samples of 3 and 2 tokens the parts are [3, 3, 2, 2] long; one iterator zipped with itself
    gives ids and labels in pairs.
    """
    rows = []
    for (held, row), n in zip(places, sizes, strict=True):
        first = (held.offsets[row] + TOKENS_START) // 4
        rows.append(held.words[first : first + PLAIN_ROWS * n])
    tokens = np.frombuffer(b"".join(rows), np.int32).astype(np.int64)
    each = [n for n in sizes for _ in range(PLAIN_ROWS)]
    parts = iter(torch.split(torch.from_numpy(tokens), each))
    keys = [f"{held.shard.name}/{row:08d}" for held, row in places]
    found = zip(parts, parts, keys, strict=True)
    return [{"input_ids": ids, "labels": labels, "key": key} for ids, labels, key in found]


def _sample_at(held: OpenShard, row: int, *, documents: bool) -> dict[str, Any]:
    """A row of an uncompressed shard as sample_of makes it, with its `key`."""
    n = held.n_tokens[row]
    first = (held.offsets[row] + TOKENS_START) // 4
    tokens = np.frombuffer(held.words[first : first + PLAIN_ROWS * n], np.int32).astype(np.int64)
    sample: dict[str, Any] = {
        "input_ids": torch.from_numpy(tokens[:n]),
        "labels": torch.from_numpy(tokens[n:]),
        "key": f"{held.shard.name}/{row:08d}",
    }
    if documents:
        lengths = held.documents[held.firsts[row] : held.firsts[row + 1]]
        sample["position_ids"] = torch.from_numpy(position_ids(lengths))
    return sample


def sample_of(row: Row, documents: NDArray[np.int64] | None, rules: RowRules) -> dict[str, Any]:
    """`input_ids`, `labels` and, for a pack of `documents`, `position_ids`: int64 (n,) tensors.

    A pair as sample_of_pair makes it.
    """
    if documents is not None and rules.task == PREFERENCE:
        return dict(sample_of_pair(row, documents))
    tokens = np.frombuffer(row, np.int32).reshape(PLAIN_ROWS, -1).astype(np.int64)
    sample: dict[str, Any] = dict(
        zip(("input_ids", "labels"), torch.from_numpy(tokens).unbind(), strict=True)
    )
    if documents is not None:
        sample["position_ids"] = torch.from_numpy(position_ids(documents))
    return sample


def rows_of(sample: Mapping[str, Any]) -> Row:
    """The token rows of a sample as sample_of makes it, end to end: int32 (2 * n,)."""
    rows = [sample[name].numpy() for name in ("input_ids", "labels")]
    return np.concatenate(rows).astype(np.int32).data


def raw_of(samples: Sequence[Mapping[str, Any]], rules: RowRules) -> RawBatch:
    """Samples as sample_of makes them, as the raw batch that they came from; without images."""
    if rules.task == PREFERENCE:
        pairs = [row_of_pair(sample) for sample in samples]
        return RawBatch(
            rows=[row for row, _ in pairs], documents=[d for _, d in pairs], task=rules.task
        )
    flags = [sample["label"] for sample in samples] if rules.task == KTO else None
    return RawBatch(
        rows=[rows_of(sample) for sample in samples],
        documents=[*map(documents_of, samples)] if rules.has_segments else None,
        task=rules.task,
        flags=None if flags is None else np.array(flags, bool),
    )


def documents_of(sample: Mapping[str, Any]) -> NDArray[np.int64]:
    """The tokens of each document of a pack, from its position_ids. 0 1 0 gives [2, 1]."""
    positions = sample["position_ids"].numpy()
    return np.diff(np.append(np.flatnonzero(positions == 0), len(positions)))
