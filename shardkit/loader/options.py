"""Everything that a user can say about reading a dataset: a few frozen values, each option once.

`LoaderOptions.of(given)` sorts keyword arguments into them and refuses what does not fit, before
anything is opened. The TypedDicts are the same names for type checkers; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, cast

import msgspec

from shardkit.options import FilePath, Fits, NonNegative, Positive, chosen, refuse_unknown
from shardkit.order.epoch import DEFAULT_WINDOW, Shuffle

ImagePad = Literal["none", "always-one"]
ImageLayout = Literal["flat", "row"]
Recheck = Literal["first", "always"]
LossWeights = Literal["token", "sample", "square"]
Seed = Annotated[int, Fits("a whole number from 0 to 2**64 - 1", lambda seed: 0 <= seed < 1 << 64)]
Epoch = Annotated[int, Fits("a whole number from 0 to 2**63 - 1", lambda n: 0 <= n < 1 << 63)]


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What the training run uses; None where it does not say. A dataset of other things is refused.

    `tokenizer`: anything that shardkit.tokens.load_tokenizer takes. `template`: a name, a file, a
    loaded template. `images`: those image settings that matter to the run, by their names in the
    manifest's recipe. `processor`: of a dataset that was packed with one, what
    shardkit.processors.load_processor takes; it also makes the pictures of batches.
    """

    tokenizer: object | None = None
    template: object | None = None
    processor: object | None = None
    max_length: Positive | None = None
    images: Mapping[str, Any] | None = None


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How shards are reached, and when their bytes are checked.

    `storage_options`, `cache_dir`, `cache_limit`: see dataset.StorageOptions. `recheck`: a sample's
    hash is compared when it is read `first`, or `always`.
    """

    storage_options: Mapping[str, Any] | None = None
    cache_dir: FilePath | None = None
    cache_limit: Positive | None = None
    recheck: Recheck = "first"


class Streaming(Access, frozen=True, kw_only=True):
    """Access to shards that are read in order.

    `fetch_ahead`: remote shards that are fetched before they are needed (None: 256 MB, 2 to 8).
    """

    fetch_ahead: Positive | None = None


class Ordering(msgspec.Struct, frozen=True, kw_only=True):
    """Which order an epoch has, and what becomes of its last samples."""

    shuffle: bool | Shuffle = True
    seed: Seed = 0
    epoch: Epoch = 0
    window: Positive = DEFAULT_WINDOW
    drop_last: bool = True


class Ranks(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a global batch this process reads; see find_world."""

    rank: NonNegative | None = None
    world_size: Positive | None = None
    group: object | None = None


class Pictures(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of images; see ImageStage, and VisionStage for `fast_pixels`."""

    image_transform: object | None = None
    expand_image_tokens: Positive | None = None
    image_token_id: int | None = None
    image_pad: ImagePad = "none"
    image_layout: ImageLayout = "flat"
    image_threads: NonNegative = 0
    fast_pixels: bool = False


class Padded(msgspec.Struct, frozen=True, kw_only=True):
    """How rows are made equally long.

    `pad_token_id` None is that of the dataset's tokenizer, `pad_to_multiple_of` None is 1.
    `loss_weights`: batches say what each label weighs; see make_batch.
    """

    pad_token_id: NonNegative | None = None
    pad_to_multiple_of: Positive | None = 1
    loss_weights: LossWeights | None = None


class TableOptions(TypedDict, total=False):
    """The options of ShardTable, for type checkers: those of Expected and Access."""

    tokenizer: object | None
    template: object | None
    processor: object | None
    max_length: int | None
    images: Mapping[str, Any] | None
    storage_options: Mapping[str, Any] | None
    cache_dir: str | Path | None
    cache_limit: int | None
    recheck: Recheck


class DatasetOptions(TableOptions, total=False):
    """The options of ShardDataset, for type checkers and for those who pass them on."""

    fetch_ahead: int | None
    shuffle: bool | Shuffle
    seed: int
    epoch: int
    window: int
    drop_last: bool
    rank: int | None
    world_size: int | None
    group: object | None
    image_transform: object | None
    expand_image_tokens: int | None
    image_token_id: int | None
    image_pad: ImagePad
    image_layout: ImageLayout
    image_threads: int
    fast_pixels: bool
    pad_token_id: int | None
    pad_to_multiple_of: int | None
    loss_weights: LossWeights | None


class LoaderOptions(msgspec.Struct, frozen=True, kw_only=True):
    """All options of a ShardDataset, in groups."""

    expected: Expected
    access: Streaming
    order: Ordering
    ranks: Ranks
    images: Pictures
    padding: Padded

    @classmethod
    def of(cls, given: DatasetOptions) -> LoaderOptions:
        """The options from keyword arguments; raises UsageError, and opens nothing."""
        flat = cast(Mapping[str, object], given)
        refuse_unknown(flat, *DATASET_PARTS)
        parts = {field.name: field.type for field in msgspec.structs.fields(cls)}
        return cls(**{name: chosen(part, flat) for name, part in parts.items()})


def table_options(given: TableOptions) -> tuple[Expected, Access]:
    """The options of a ShardTable from keyword arguments; raises UsageError, and opens nothing."""
    flat = cast(Mapping[str, object], given)
    refuse_unknown(flat, Expected, Access)
    return chosen(Expected, flat), chosen(Access, flat)


DATASET_PARTS = tuple(field.type for field in msgspec.structs.fields(LoaderOptions))
"""The structs whose fields are the options of ShardDataset."""
