"""The plan of a pack: scanned inputs, the identity, and parts whose borders no worker decides."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardkit.builder.options import PackOptions
from shardkit.builder.texts import Texts, load_texts
from shardkit.errors import UsageError
from shardkit.format.layout import FORMAT_MAJOR
from shardkit.format.manifest import fingerprint_of
from shardkit.format.recipe import TOKEN_ROWS
from shardkit.order.permute import derive_key, permute
from shardkit.processors import VisionProcessor, identity_of
from shardkit.sources import (
    Choice,
    Copies,
    Inputs,
    ReadOptions,
    SourceScan,
    check_unchanged,
    choose,
    find_inputs,
    mark_duplicates,
    scan,
)
from shardkit.tokens import ChatTemplate, Template, Tokenizer

log = logging.getLogger("shardkit.builder")

PURPOSE_ROWS = 3
"""docs/format.md, section 11.2: the key of the row order."""


class PlanShape:
    """What a plan and its saved form tell of rows and parts."""

    identity: dict[str, Any]
    scans: Sequence[SourceScan]
    rows_per_part: int
    begun_as: str | None
    """What receipts name in place of the fingerprint, where parts were begun without digests."""

    @property
    def key(self) -> str:
        """What the receipts of its parts name: they are of this plan and of no other."""
        return self.begun_as or self.fingerprint

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the identity, 64 hex digits."""
        return fingerprint_of(self.identity)

    @property
    def n_rows(self) -> int:
        """Rows of all inputs."""
        return sum(scan.n_rows for scan in self.scans)

    @property
    def n_parts(self) -> int:
        """Parts that the rows are cut into."""
        return -(-self.n_rows // self.rows_per_part)

    @cached_property
    def read_options(self) -> ReadOptions:
        """How records are read."""
        return ReadOptions.of_recipe(self.identity["recipe"])

    @property
    def is_packed(self) -> bool:
        """Whether rows of the result hold several samples."""
        return bool(self.identity["recipe"]["packing"] != "none")

    def check_unchanged(self, sources: Iterable[int] | None = None) -> None:
        """Raise BadInput when an input (of these numbers, or any) is not what was scanned."""
        numbers = range(len(self.scans)) if sources is None else sources
        for number in numbers:
            check_unchanged(self.scans[number].path, self.scans[number].stamp)

    def part_bounds(self, part: int) -> tuple[int, int]:
        """First and last + 1 position of a part in the planned row order."""
        first = part * self.rows_per_part
        return first, min(first + self.rows_per_part, self.n_rows)


@dataclass(frozen=True)
class Plan(PlanShape):
    """What is going to be built. The same inputs and options give the same plan anywhere."""

    options: PackOptions
    scans: tuple[SourceScan, ...]
    source_format: str
    why_format: str
    tokenizer: Tokenizer
    template: Template | ChatTemplate
    identity: dict[str, Any]
    rows_per_part: int
    processor: VisionProcessor | None = None
    """The processor whose texts stand for pictures; None: one placeholder each."""
    begun_as: str | None = None

    @property
    def image_token(self) -> int:
        """The id of an image's placeholder."""
        return int(self.options.image_token)

    def rows(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(source, row in it), (n,) int64 each, of the positions first to last - 1 of the plan.

        Files of 3 and 2 rows, not shuffled: positions [2, 3] are the sources [0, 1], rows [2, 0].
        """
        positions = np.arange(first, last, dtype=np.uint64)
        seed = self.options.shuffle_seed
        if seed is not None:
            key = derive_key(seed, 0, PURPOSE_ROWS)
            positions = permute(positions, self.n_rows, key)
        ends = np.cumsum([scan.n_rows for scan in self.scans])
        places = positions.astype(np.int64)
        source = np.searchsorted(ends, places, side="right")
        starts = np.concatenate([[0], ends[:-1]])
        return source, places - starts[source]


def make_plan(
    inputs: Sequence[str | Path],
    options: PackOptions,
    *,
    spool: Path,
    storage_options: Mapping[str, Any] | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> Plan:
    """Scan the inputs and decide everything that decides bytes.

    `spool`: a folder for row borders, and copies of what is compressed or elsewhere. Raises
    UsageError, BadInput, TokenizerError, ProcessorError, TemplateError, MissingPackage and
    StorageError.
    """
    texts = load_texts(options)
    found = inputs_of(inputs, options, Copies(spool, storage_options or {}))
    scans = tuple(
        scan(path, name=name, spool=spool / f"source-{number:05d}", progress=on_bytes)
        for number, (path, name) in enumerate(zip(found.paths, found.names, strict=True))
    )
    return plan_of(scans, options, texts, spool)


def inputs_of(inputs: Sequence[str | Path], options: PackOptions, copies: Copies) -> Inputs:
    """The files that are meant; those that are left out are told to the log."""
    found = find_inputs(inputs, options.split, options.exclude or (), copies)
    for note in found.notes:
        log.warning("%s", note)
    return found


def plan_of(scans: tuple[SourceScan, ...], options: PackOptions, texts: Texts, spool: Path) -> Plan:
    """The plan for inputs that were scanned before; `spool` as for make_plan."""
    if options.drop_duplicates:
        scans = mark_duplicates(scans, spool)
    tokenizer, processor = texts.tokenizer, texts.processor
    token = options.image_token if processor is None else processor.image_token_id
    options = msgspec.structs.replace(
        options,
        tokenizer=tokenizer,
        image_token=_image_token(tokenizer, token),
        processor=None,
        processor_args=None,
        max_pixels=None,
        min_pixels=None,
    )
    choice = _chosen(scans, options)
    n_rows = sum(scan.n_rows for scan in scans)
    total = sum(scan.row_bytes * scan.n_rows for scan in scans)
    size = options.part_size(n_rows, int(total))
    by_bytes = int(size["part_bytes"] // max(total / max(n_rows, 1), 1.0))
    rows_per_part = max(1, min(size["part_rows"], by_bytes))
    return Plan(
        options=options,
        scans=scans,
        source_format=choice.source.name,
        why_format=choice.why,
        tokenizer=tokenizer,
        template=texts.template,
        identity=_identity(scans, options, choice, texts, size),
        rows_per_part=rows_per_part,
        processor=processor,
    )


def _image_token(tokenizer: Tokenizer, token: int | str) -> int:
    """The id of an image token that may be given as text; raises UsageError when it has none."""
    if isinstance(token, int):
        return token
    found = tokenizer.backend.token_to_id(token)
    if found is None:
        raise UsageError(
            f"the tokenizer has no token {token!r}",
            where="--image-token",
            fix="Add the token to the tokenizer first, or leave -200.",
        )
    return int(found)


def _chosen(scans: tuple[SourceScan, ...], options: PackOptions) -> Choice:
    """The source format, and what the first rows show of it."""
    reading = ReadOptions(
        columns=options.columns,
        ignored=frozenset(options.ignored_fields or ()),
        has_images=options.image_root is not None,
        task=options.task,
    )
    choice = choose(scans, options.source_format, reading)
    options.check_family(choice.source)
    if choice.names_images and options.image_root is None:
        raise UsageError(
            "these rows need the folder that their images are in",
            found=choice.names_images,
            fix="Name it: --image-root DIR. (For the text alone: --ignore-field image, or images.)",
        )
    if choice.is_packed and options.pack_scope == "all":
        raise UsageError(
            "these rows came packed, and their samples are laid out within parts only",
            where="--pack-scope all",
            fix="Leave --pack-scope out.",
        )
    sizes = {"--image-size": options.image_size, "--store-max-pixels": options.store_max_pixels}
    given = [name for name, value in sizes.items() if value is not None]
    if given and options.image_root is None and not choice.has_bytes:
        raise UsageError(
            f"{given[0]} is given without --image-root",
            fix="Name the folder that holds the images: --image-root DIR.",
        )
    return choice


def _identity(
    scans: Sequence[SourceScan],
    options: PackOptions,
    choice: Choice,
    texts: Texts,
    size: dict[str, int],
) -> dict[str, Any]:
    """What decides the tokens: options as they were given, or as they turned out."""
    recipe = options.kept("recipe") | {
        "source_format": choice.source.name,
        "tokenizer": texts.tokenizer.identity.to_json(),
        "template": dict(texts.template.identity),
        "truncation": "keep-head",
        "packing": "kept" if options.packing == "none" and choice.is_packed else options.packing,
        "token_rows": list(TOKEN_ROWS),
        "images": _images(options, choice, texts.processor),
    }
    return options.kept("identity") | {
        "format": FORMAT_MAJOR,
        "recipe": recipe,
        "sources": sources_of(scans),
        "layout": options.kept("layout") | size,
    }


def sources_of(scans: Sequence[SourceScan]) -> list[dict[str, Any]]:
    """The sources as the identity has them: digest and rows of each, in order."""
    return [{"sha256": scan.sha256, "n_rows": scan.n_rows} for scan in scans]


def provisional_key(plan: PlanShape) -> str:
    """What stands for the fingerprint while digests are missing: that of these files as they are.

    A file that is written anew has another stamp, so parts of it are never taken for its own.
    """
    stamps = [{"stamp": list(scan.stamp), "n_rows": scan.n_rows} for scan in plan.scans]
    return fingerprint_of({**plan.identity, "sources": stamps})


def _images(
    options: PackOptions, choice: Choice, processor: VisionProcessor | None
) -> dict[str, Any] | None:
    """The recipe's images: with a processor also where this pack has none, so that it mixes."""
    if processor is None:
        return options.image_recipe(choice.has_bytes)
    recipe = options.image_recipe(in_rows=True) or {}
    return {**recipe, "image_tokens": None, "processor": identity_of(processor)}
