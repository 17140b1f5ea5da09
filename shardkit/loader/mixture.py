"""Several datasets by weight, as one dataset for ShardLoader."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

import numpy as np

from shardkit.dataset import Dataset
from shardkit.errors import IdentityMismatch, UsageError
from shardkit.format.manifest import Manifest, content_of_mixture, fingerprint_of_mixture
from shardkit.loader.batches import IndexLengths
from shardkit.loader.dataset import DatasetOptions, ShardDataset
from shardkit.loader.opened import Expected, open_expected
from shardkit.order.by_length import Order
from shardkit.order.mixture import VANILLA_BLOCK, Until, integer_weights
from shardkit.order.state import Arrangement


class ShardMixture(ShardDataset):
    """Samples of several datasets, each with a share of every global batch.

    `members`: path → weight; a weight counts samples (of packed data, packs). In every global
    batch a member has its share rounded down or up, and over the run exactly its share. Each
    member goes through its own epochs, every sample once in each. `until` ends a mixture epoch:
    `first`: before a sample of any member would repeat; `all`: when every member was seen whole
    (the smaller ones repeat); `endless`: never, there is no len(). What one mixture epoch did not
    reach comes in the next.

    The options are those of ShardDataset. Members that were packed with another tokenizer,
    template, max_length, packing or image setting than the first are refused.
    """

    def __init__(
        self,
        members: Mapping[str, float] | Mapping[Path, float],
        *,
        until: Until = "first",
        **options: Unpack[DatasetOptions],
    ) -> None:
        if not members or min(members.values()) <= 0:
            raise UsageError(
                "a mixture needs datasets with weights above 0",
                found=str({str(path): weight for path, weight in members.items()}),
                fix="Leave out what should not be read.",
            )
        if until not in ("first", "all", "endless"):
            raise UsageError(
                "there is no such end of a mixture epoch",
                expected="'first', 'all' or 'endless'",
                found=repr(until),
                fix="Use until='first'.",
            )
        paths = [str(path) for path in members]
        super().__init__(paths[0], **options)
        expected = Expected(
            options.get("tokenizer"),
            options.get("template"),
            options.get("max_length"),
            options.get("images"),
        )
        others = [
            open_expected(
                path,
                expected,
                storage_options=options.get("storage_options"),
                cache_dir=options.get("cache_dir"),
                cache_limit=options.get("cache_limit"),
            )
            for path in paths[1:]
        ]
        for other in others:
            _refuse_unlike(self.members[0], other)
        self.members = (*self.members, *others)
        self.weights = integer_weights([*members.values()])
        self.until: Until = until

    @property
    def fingerprint(self) -> str:
        """Of what made the samples of all members, their weights and the end of an epoch."""
        manifests = [member.manifest for member in self.members]
        return fingerprint_of_mixture(manifests, self.weights, self.until)

    @property
    def content(self) -> str:
        """Of what the shards of all members hold."""
        return content_of_mixture([member.manifest for member in self.members])

    def arrange(self, batch_size: int, lanes: int | None) -> Arrangement:
        """The arrangement of a loader: one block is one global batch."""
        if lanes is not None:
            raise UsageError("a mixture has no lanes", fix="Leave lanes out.")
        return self._arranged(lanes=1, chunk=batch_size * self.world.size)

    def order(self, arrangement: Arrangement, epoch: int) -> Order:
        """The sequence of a mixture epoch."""
        sizes = [member.sizes for member in self.members]
        order = arrangement.mixture_epoch(epoch, sizes, self.weights, self.until)
        return arrangement.grouped(order, IndexLengths(self.members))

    def n_samples_of(self, arrangement: Arrangement) -> int | None:
        """Positions of one mixture epoch; None when it is endless."""
        return self.order(arrangement, 0).n_samples

    def check_present(self, order: Order) -> None:
        """Look that the shards of all members are there, with the right size."""
        for member in self.members:
            member.check_present(np.arange(len(member.sizes)))

    def _vanilla(self, n_workers: int) -> Arrangement:
        return self._arranged(lanes=1, chunk=VANILLA_BLOCK)


def _refuse_unlike(first: Dataset, other: Dataset) -> None:
    """Raise IdentityMismatch when two datasets cannot be read into one batch."""
    from shardkit.tokens.identity import TokenizerIdentity, differences

    ours, theirs = (
        TokenizerIdentity.from_json(one.manifest.recipe.get("tokenizer"), one.root)
        for one in (first, other)
    )
    lines = differences(ours, theirs)
    if lines:
        raise _unlike("tokenizer (" + "; ".join(lines) + ")", first, other, "", "")
    for name, ours_has, theirs_has in _facts(first.manifest, other.manifest):
        if ours_has != theirs_has:
            raise _unlike(name, first, other, ours_has, theirs_has)


def _facts(first: Manifest, other: Manifest) -> list[tuple[str, object, object]]:
    """What must be equal in the members of a mixture, beside the tokenizer."""
    ours, theirs = first.recipe, other.recipe
    templates = [(recipe.get("template") or {}).get("sha256") for recipe in (ours, theirs)]
    facts: list[tuple[str, object, object]] = [
        ("template", templates[0], templates[1]),
        ("max_length", ours.get("max_length"), theirs.get("max_length")),
        ("packing", ours.get("packing"), theirs.get("packing")),
    ]
    if first.is_packed and other.is_packed:
        facts.pop()
    if ours.get("images") and theirs.get("images"):
        names = ("image_tokens", "image_token")
        facts += [(name, ours["images"].get(name), theirs["images"].get(name)) for name in names]
    return facts


def _unlike(
    what: str, first: Dataset, other: Dataset, ours: object, theirs: object
) -> IdentityMismatch:
    return IdentityMismatch(
        f"packed with another {what} than {first.root}",
        where=other.root,
        expected=str(ours) or None,
        found=str(theirs) or None,
        fix="Pack the datasets of a mixture with the same tokenizer, template and max_length.",
    )
