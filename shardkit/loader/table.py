"""The samples of a dataset by number, for map-style code: samplers, exporters, notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset as TorchDataset

from shardkit.dataset import Dataset
from shardkit.format.recipe import KTO, RowRules
from shardkit.format.samples import position_ids
from shardkit.loader.batch_maker import BatchMaker
from shardkit.loader.collate import PLAIN_ROWS, Batch, Padding, RawBatch, Row
from shardkit.loader.lookup import Block, desirable, image_documents
from shardkit.loader.opened import open_expected
from shardkit.loader.options import Pictures, TableOptions, table_options
from shardkit.loader.reader import Reader
from shardkit.loader.vision import vision_stage_of
from shardkit.options import FilePath, check


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
        self._reader: Reader | None = None

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Sample i: `input_ids`, `labels` and, of packed data, `position_ids` (int64 (n,)), `key`,
        and `images`, the encoded bytes in reading order, when it has some. A pair of answers is
        one row, the chosen one first; its `position_ids` begin again where the second one does.
        A labelled answer has its `label`.

        Raises IndexError, and CorruptShard for a sample that does not match its hash.
        """
        n = len(self)
        if not -n <= i < n:
            raise IndexError(f"sample {i} of a dataset of {n}")
        block = self._find(np.array([i % n]))
        row = self.reader.read(block, 0, 1)[0]
        sample = sample_of(row, block.documents[0] if block.documents else None)
        sample["key"] = self.reader.key(block, 0)
        if self._rules.task == KTO:
            sample["label"] = bool(desirable(block, 0, 1)[0])
        if block.n_images is not None and block.n_images[0]:
            sample["images"] = [bytes(image) for image in self.reader.images(block, 0)]
            if self._rules.is_packed:
                sample["image_documents"] = torch.from_numpy(image_documents(block, [0]))
        return sample

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


def sample_of(row: Row, documents: NDArray[np.int64] | None) -> dict[str, Any]:
    """`input_ids`, `labels` and, for a pack of `documents`, `position_ids`: int64 (n,) tensors."""
    tokens = np.frombuffer(row, np.int32).reshape(PLAIN_ROWS, -1).astype(np.int64)
    sample: dict[str, Any] = dict(
        zip(("input_ids", "labels"), torch.from_numpy(tokens).unbind(), strict=True)
    )
    if documents is not None:
        sample["position_ids"] = torch.from_numpy(position_ids(documents))
    return sample


def rows_of(sample: Mapping[str, Any]) -> Row:
    """The token rows of a sample again, end to end: (2 * n,)."""
    rows = [sample[name].numpy() for name in ("input_ids", "labels")]
    return np.concatenate(rows).astype(np.int32).data


def raw_of(samples: Sequence[Mapping[str, Any]], rules: RowRules) -> RawBatch:
    """The token rows of samples again, as batches are made of them."""
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
