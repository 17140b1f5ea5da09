"""Several datasets by weight, as one dataset for ShardLoader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Unpack

import msgspec
import numpy as np

from shardkit.dataset import Dataset
from shardkit.errors import IdentityMismatch, UsageError
from shardkit.format.manifest import Manifest, content_of_mixture, fingerprint_of_mixture
from shardkit.format.recipe import MULTIPLE, SFT
from shardkit.loader.batches import IndexFacts, grouped
from shardkit.loader.dataset import ShardDataset
from shardkit.loader.options import DatasetOptions, LoaderOptions
from shardkit.options import FilePath, check
from shardkit.order.arrangement import Arrangement
from shardkit.order.by_length import Order
from shardkit.order.mixture import VANILLA_BLOCK, Until, integer_weights
from shardkit.processors import differences as processor_differences

_Weight = Annotated[float, msgspec.Meta(gt=0)]


class ShardMixture(ShardDataset):
    """Samples of several datasets, each with a share of every global batch.

    `members`: path → weight; a weight counts samples (of packed data, packs). In every global
    batch a member has its share rounded down or up, and over the run exactly its share. Each
    member goes through its own epochs, every sample once in each. `until` ends a mixture epoch:
    `first`: before a sample of any member would repeat; `all`: when every member was seen whole
    (the smaller ones repeat); `endless`: never, there is no len(). What one mixture epoch did not
    reach comes in the next.

    The options are those of ShardDataset; `shuffle=True` is `window` where any member is compressed
    or remote. Members with another tokenizer, template, max_length, task or image setting than the
    others, or packs beside rows that are no packs, are refused with IdentityMismatch.
    """

    def __init__(
        self,
        members: Mapping[str, float] | Mapping[Path, float],
        *,
        until: Until = "first",
        **options: Unpack[DatasetOptions],
    ) -> None:
        self.until: Until = check("until", until, Until)
        self.weights = integer_weights(_weights(members))
        self._begin([*members], LoaderOptions.of(options))
        _refuse_unlike(self.members)

    @property
    def fingerprint(self) -> str:
        """The sha256 of what made all members' samples, their weights and the end of an epoch."""
        manifests = [member.manifest for member in self.members]
        return fingerprint_of_mixture(manifests, self.weights, self.until)

    @property
    def content(self) -> str:
        """The sha256 of what the shards of all members hold."""
        return content_of_mixture([member.manifest for member in self.members])

    def arrange(self, batch_size: int, lanes: int | None) -> Arrangement:
        """The arrangement of a loader: one block is one global batch; UsageError for lanes."""
        if lanes is not None:
            raise UsageError("a mixture has no lanes", fix="Leave lanes out.")
        return self._arranged(lanes=1, chunk=batch_size * self.world.size)

    def order(self, arrangement: Arrangement, epoch: int, facts: IndexFacts | None = None) -> Order:
        """The sequence of a mixture epoch; `facts`: what orders by length or cost ask."""
        sizes = [member.sizes for member in self.members]
        order = arrangement.mixture_epoch(epoch, sizes, self.weights, self.until)
        return grouped(arrangement, order, epoch, self.members, facts)

    def n_samples_of(self, arrangement: Arrangement) -> int | None:
        """Positions of one mixture epoch; None when it is endless."""
        return self.order(arrangement, 0).n_samples

    def check_present(self, order: Order) -> None:
        """Look that the shards of all members are there, with the right size.

        Raises what Dataset.check_present raises.
        """
        for member in self.members:
            member.check_present(np.arange(len(member.sizes)))

    def _vanilla(self, n_workers: int) -> Arrangement:
        return self._arranged(lanes=1, chunk=VANILLA_BLOCK)


def _weights(members: object) -> list[float]:
    """The weights; raises UsageError for what is no mapping of paths to numbers above 0."""
    if not isinstance(members, Mapping) or not members:
        raise UsageError(
            "members has a wrong value",
            expected="a path with a weight, of each dataset",
            found=repr(members)[:80],
            fix="Give ShardMixture({path: weight, ...}).",
        )
    for path, weight in members.items():
        check("a path of the mixture", path, FilePath)
        check(f"the weight of {path}", weight, _Weight)
    return [*members.values()]


def _refuse_unlike(members: Sequence[Dataset]) -> None:
    """Raise IdentityMismatch when datasets cannot be read into one batch."""
    with_images = [one for one in members if one.manifest.image_recipe is not None]
    for other in members[1:]:
        _refuse_unlike_pair(members[0], other)
    for other in with_images[1:]:
        _refuse_unlike_pair(with_images[0], other)


def _refuse_unlike_pair(first: Dataset, other: Dataset) -> None:
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
        ("multiple that documents are padded to", ours.get(MULTIPLE, 1), theirs.get(MULTIPLE, 1)),
        ("task", ours.get("task", SFT), theirs.get("task", SFT)),
    ]
    if not (first.is_packed and other.is_packed):
        facts.append(("packing", ours.get("packing"), theirs.get("packing")))
    if ours.get("images") and theirs.get("images"):
        names = ("image_tokens", "image_token")
        facts += [(name, ours["images"].get(name), theirs["images"].get(name)) for name in names]
        processors = [(one["images"].get("processor") or {}) for one in (ours, theirs)]
        lines = processor_differences(*processors) if all(processors) else []
        facts += [("processor (" + "; ".join(lines) + ")", True, not lines)]
        facts += [("kind of pictures", bool(processors[0]), bool(processors[1]))]
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
