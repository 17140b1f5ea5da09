"""Do the shards hold what the source gives when it is tokenised again?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.check.findings import FOREIGN, Finding, in_words
from shardkit.conversation import Conversation, Exchange, Reject
from shardkit.dataset import Dataset
from shardkit.errors import IdentityMismatch, ShardkitError, StorageError, UsageError
from shardkit.format.builds import builds_by_shard
from shardkit.format.manifest import Manifest
from shardkit.format.recipe import MULTIPLE, PREFERENCE, SFT, RowRules, pad_token_id_of
from shardkit.format.samples import IGNORE_INDEX
from shardkit.format.shard import Shard
from shardkit.images import upright_size
from shardkit.processors import VisionProcessor, load_processor_like
from shardkit.sources import (
    ReadOptions,
    SourceScan,
    find_again,
    names_of,
    scan,
    source_named,
)
from shardkit.tokens import (
    REFERENCE,
    ChatTemplate,
    Encoder,
    Template,
    Tokenizer,
    TokenizerIdentity,
    differences,
    load_template,
    load_tokenizer,
    template_of,
)
from shardkit.tokens.train_rules import TrainRules


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """Where one sample, or one segment of a pack, is stored, and what source row it is of."""

    shard: int
    row: int
    """The row of the shard that holds it."""
    start: int
    """The first of its tokens in that row."""
    length: int
    """How many tokens it has."""
    source: int
    """The number of the source in the manifest."""
    record: int
    """The source row."""
    piece: int
    """Which sample of the source row it is, where that became several."""
    first: int
    """Tokens of the sample that lie before it, in another pack."""


def check_identity(
    dataset: Dataset,
    tokenizer: Tokenizer | None,
    template: object,
    max_length: int | None,
) -> Iterator[Finding]:
    """Findings where the dataset was made with something else than what is given."""
    recipe = dataset.manifest.recipe
    if tokenizer is not None:
        packed = TokenizerIdentity.from_json(recipe["tokenizer"])
        for line in differences(packed, tokenizer.identity):
            yield Finding("tokenizer", f"another tokenizer: {line}")
    if template is not None:
        found = _template(dataset, template, tokenizer).identity
        if found["sha256"] != recipe["template"]["sha256"]:
            names = f"{recipe['template']['name']} was used, {found['name']} is given"
            yield Finding("template", f"another template: {names}")
    if max_length is not None and recipe["max_length"] != max_length:
        yield Finding(
            "max-length", f"{recipe['max_length'] or 'none'} was used, {max_length} is given"
        )


def processor_for(dataset: Dataset, given: object) -> tuple[VisionProcessor | None, list[Finding]]:
    """The processor that is given, when the dataset was packed with it; findings where not."""
    packed = (dataset.manifest.recipe.get("images") or {}).get("processor")
    if given is None:
        return None, []
    if packed is None:
        return None, [Finding("processor", "the dataset was packed without a processor")]
    try:
        return load_processor_like(given, packed), []
    except IdentityMismatch as err:
        return None, [Finding("processor", err.message)]


def retokenise(
    dataset: Dataset,
    sources: Sequence[str | Path],
    tokenizer: Tokenizer | None,
    template: object,
    n_rows: int,
    processor: VisionProcessor | None = None,
) -> tuple[int, list[Finding]]:
    """Encode sampled rows of the given source files again; (rows compared, findings).

    Raises UsageError when the dataset needs a processor, and what reading the sources raises.
    """
    manifest = dataset.manifest
    tokenizer = tokenizer or load_tokenizer(dataset.tokenizer_folder())
    if processor is None and (manifest.recipe.get("images") or {}).get("processor"):
        raise UsageError(
            "rows of this dataset are tokenised by a processor",
            where=dataset.root,
            fix="Name it: --processor DIR_OR_NAME.",
        )
    encoder = _encoder(manifest, tokenizer, _template(dataset, template, tokenizer), processor)
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory() as spool:
        scans = _matched(manifest, sources, Path(spool), findings)
        if not scans:
            return 0, findings
        places = _sampled(dataset, set(scans), n_rows)
        for place in places:
            try:
                message = _compare(dataset, encoder, scans[place.source], place)
            except FOREIGN as err:
                message = f"cannot be compared: {in_words(err)}"
            if message:
                findings.append(_finding(manifest, place, message))
    return len(places), findings


def _matched(
    manifest: Manifest, sources: Sequence[str | Path], spool: Path, findings: list[Finding]
) -> dict[int, SourceScan]:
    """The given files by the number of the source with the same digest."""
    numbers = {source.sha256: number for number, source in enumerate(manifest.sources)}
    paths = find_again(sources, [source.name for source in manifest.sources])
    scans = {}
    for i, (path, name) in enumerate(zip(paths, names_of(paths), strict=True)):
        found = scan(path, name=name, spool=spool / f"source-{i}")
        if found.sha256 in numbers:
            scans[numbers[found.sha256]] = found
        else:
            findings.append(Finding("source", f"{path} is not a source of this dataset"))
    return scans


def _sampled(dataset: Dataset, sources: set[int], n: int) -> list[StoredDocument]:
    """About n places, evenly over the dataset, of rows in these sources."""
    manifest = dataset.manifest
    shares = np.linspace(0, max(manifest.n_samples - 1, 0), num=min(n, manifest.n_samples))
    positions = np.unique(shares.astype(np.int64))
    ends = np.cumsum(manifest.sizes)
    places: list[StoredDocument] = []
    builds = builds_by_shard(manifest)
    numbers = np.searchsorted(ends, positions, side="right")
    for number in np.unique(numbers).tolist():
        entry = manifest.shards[number]
        try:
            shard = dataset.open_shard(number)
        except ShardkitError as err:
            if isinstance(err, StorageError) and not dataset.is_local:
                raise
            continue
        rows = positions[numbers == number] - (ends[number] - entry.n_samples)
        own = [place for row in rows.tolist() for place in _places(shard, number, row)]
        begin = builds[number].first_source
        places += [replace(place, source=begin + place.source) for place in own]
        shard.close()
    return [place for place in places if place.source in sources][: 2 * n]


def _places(shard: Shard, number: int, row: int) -> Iterator[StoredDocument]:
    is_pair = RowRules.of(shard.recipe).task == PREFERENCE  # which is compared whole
    if shard.segments is None or is_pair:
        one = shard.index[row]
        names = ("n_tokens", "source", "record", "piece")
        length, source, record, piece = (one[name].item() for name in names)
        yield StoredDocument(number, row, 0, length, source, record, piece, 0)
        return
    for part in shard.segments_of(row):
        fields = ("start", "length", "source", "record", "piece", "first")
        yield StoredDocument(number, row, *(part[name].item() for name in fields))


def _compare(
    dataset: Dataset, encoder: Encoder, source: SourceScan, place: StoredDocument
) -> str | None:
    """What is wrong with the stored tokens of a place; None when they are equal."""
    shard = dataset.open_shard(place.shard)
    try:
        tokens = shard.tokens(place.row)[:2, place.start : place.start + place.length]
    except ShardkitError:
        return None
    recipe = dataset.manifest.recipe
    kind = source_named(recipe["source_format"])
    conversation = kind.read_row(source, place.record, ReadOptions.of_recipe(recipe))
    if isinstance(conversation, Reject):
        return f"the source row is rejected now: {conversation.reason}"
    sizes = _sizes(dataset, place, conversation) if encoder.has_pictures else []
    if sizes is None:
        return None  # pictures were cut off: their sizes are not known any more
    encoded = encoder.encode([conversation], {0: sizes})
    samples, which = encoded.samples, np.flatnonzero(encoded.piece == place.piece)
    if not len(which):
        lost = f"piece {place.piece} of the source row" if len(samples) else "the source row"
        return f"{lost} is rejected now"
    start, end = samples.starts[which[0] : which[0] + 2].tolist()
    part = slice(start + place.first, min(start + place.first + place.length, end))
    now = (samples.ids[part], samples.labels[part])
    tokens = _without_padding(tokens, len(now[0]), dataset.manifest.recipe)
    different = map(_difference, ("ids", "labels"), now, tokens)
    return next((message for message in different if message), None)


def _sizes(
    dataset: Dataset, place: StoredDocument, conversation: Conversation | Exchange
) -> list[tuple[int, int]] | None:
    """The sizes of the conversation's pictures, as they are stored; None when some are not."""
    if isinstance(conversation, Exchange) or not conversation.images:
        return []
    shard = dataset.open_shard(place.shard)
    meta = shard.meta(place.row)
    own = [
        upright_size(data)
        for about, data in zip(meta.images if meta else (), shard.images(place.row), strict=False)
        if any(0 <= first - place.start < place.length for first, _ in about.spans)
    ]
    return own if len(own) == len(conversation.images) and not place.first else None


def _without_padding(
    tokens: NDArray[np.int32], n: int, recipe: Mapping[str, Any]
) -> NDArray[np.int32]:
    """A document's own n tokens where what lies behind them is its padding; else all its tokens."""
    ids, labels = tokens
    n_padding = len(ids) - n
    is_padding = np.all(ids[n:] == pad_token_id_of(recipe)) and np.all(labels[n:] == IGNORE_INDEX)
    if 0 < n_padding < recipe.get(MULTIPLE, 1) and is_padding:
        return tokens[:, :n]
    return tokens


def _difference(name: str, now: NDArray[np.int32], stored: NDArray[np.int32]) -> str | None:
    if np.array_equal(now, stored):
        return None
    if len(now) != len(stored):
        return f"{len(stored)} {name} are stored, the source gives {len(now)}"
    at = int(np.argmax(now != stored))
    return f"{name}[{at}] is {stored[at]}, the source gives {now[at]}"


def _finding(manifest: Manifest, place: StoredDocument, message: str) -> Finding:
    row = f"{manifest.source_names[place.source]} row {place.record}"
    return Finding(
        "retokenised",
        message,
        shard=manifest.shards[place.shard].name,
        sample=f"{place.row:08d}",
        source_row=row,
    )


def _encoder(
    manifest: Manifest,
    tokenizer: Tokenizer,
    template: Template | ChatTemplate,
    processor: VisionProcessor | None,
) -> Encoder:
    recipe = manifest.recipe
    images = recipe["images"] or {}
    return Encoder(
        tokenizer,
        template,
        max_length=recipe.get("rows_cut_at", recipe["max_length"]),
        special_tokens_in_text=recipe["special_tokens_in_text"],
        image_tokens=(images.get("image_tokens") or 1),
        image_placeholder=images.get("image_token", -200),
        engine=REFERENCE,
        pictures=processor,
        rules=TrainRules.of(recipe),
        task=recipe.get("task", SFT),
    )


def _template(
    dataset: Dataset, given: object, tokenizer: Tokenizer | None
) -> Template | ChatTemplate:
    """The template that is given, or the one that the recipe holds."""
    packed = dataset.manifest.recipe["template"]
    if tokenizer is None:
        tokenizer = load_tokenizer(dataset.tokenizer_folder())
    if given is None:
        return template_of(packed, tokenizer)
    if isinstance(given, str | Path):
        return load_template(given, tokenizer, date=packed.get("date"), args=packed.get("args"))
    return load_template(given, tokenizer)  # type: ignore[arg-type]
