"""Is a dataset whole, and is it what its manifest says?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from shardkit.check.accounted_rows import RejectLine, check_files, check_ledger, read_rejects
from shardkit.check.expected import Expectation, ShardReport
from shardkit.check.findings import FOREIGN, Finding, Findings, in_words
from shardkit.check.retokenise import check_identity, processor_for, retokenise
from shardkit.check.shards import check_shard
from shardkit.dataset import Dataset, open_dataset
from shardkit.errors import StorageError
from shardkit.format.builds import Build, builds_by_shard, builds_of
from shardkit.format.layout import REJECTS_NAME
from shardkit.format.manifest import Manifest
from shardkit.format.recipe import RowRules
from shardkit.format.relations import contradictions
from shardkit.options import (
    FilePath,
    NonNegative,
    Positive,
    ProcessorSource,
    TemplateSource,
    TokenizerSource,
    checked,
)
from shardkit.processes import WorkerPool, n_cores
from shardkit.processors import VisionProcessor
from shardkit.tokens import load_tokenizer

MUCH_BYTES = 128 << 20
"""Bytes of shards from which several processes win: each begins in a second, and checks 50 MB a
second."""
OnShard = Callable[[int, int], None]
"""Called with (bytes done since the last call, bytes of all shards)."""


@checked
def verify(
    path: FilePath,
    *,
    tokenizer: TokenizerSource | None = None,
    template: TemplateSource | None = None,
    max_length: Positive | None = None,
    processor: ProcessorSource | None = None,
    sources: FilePath | Sequence[FilePath] = (),
    workers: Positive | Literal["auto"] = 1,
    n_retokenised: NonNegative = 64,
    on_shard: OnShard | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: FilePath | None = None,
) -> Findings:
    """Check every byte of a dataset; nothing is written.

    Tar structure, every hash, index against members, manifest against shards, ids inside the
    vocabulary, labels equal to ids or -100, lengths, segments, images, and the account of every
    source row. `tokenizer`, `template`, `max_length`: must be what the dataset was packed with.
    `processor`: the one that it was packed with; the tokens of every stored picture are counted
    again by its size (settings that its files do not have are taken from the manifest).
    `path` may be a URL (`storage_options` go to fsspec): the bytes there are fetched into
    `cache_dir` and checked, not copies that were fetched before.
    `workers`: processes; "auto" takes one for each core from MUCH_BYTES of shards on.
    `sources`: the input files; about `n_retokenised` rows of them are encoded again and compared.

    What is wrong is in the result, not raised; raised are BadManifest and UnsupportedVersion (no
    dataset at all), StorageError, TokenizerError, TemplateError, BadInput (a given file cannot be
    read) and UsageError (rows are to be encoded again without their processor).
    """
    files = [sources] if isinstance(sources, str | Path) else list(sources)
    dataset = open_dataset(path, storage_options=storage_options, cache_dir=cache_dir)
    manifest = dataset.manifest
    findings = Findings(dataset.root, n_shards=len(manifest.shards), n_samples=manifest.n_samples)
    findings.n_tokens, findings.n_images = manifest.n_tokens, manifest.n_images
    findings.n_bytes = sum(shard.n_bytes for shard in manifest.shards)
    findings.findings += guarded("manifest", _contradictions(manifest))
    findings.findings += guarded("files", check_files(dataset))
    known, unlike = processor_for(dataset, processor)
    findings.findings += unlike
    workers = _n_workers(findings.n_bytes) if workers == "auto" else workers
    reports = list(_check_shards(dataset, workers, on_shard, known))
    for report in reports:
        findings.findings += report.findings
    findings.checked = ["every byte of every shard against its hashes", "tar structure", "index"]
    findings.checked += ["ids, labels and lengths of every sample", "the account of every row"]
    opened = [r for r in reports if not any(f.code == "shard-open" for f in r.findings)]
    if len(opened) == len(reports):
        rejects = _rejects(dataset, findings)
        findings.findings += guarded("ledger", check_ledger(manifest, reports, rejects))
    loaded = load_tokenizer(tokenizer) if tokenizer is not None else None
    findings.findings += check_identity(dataset, loaded, template, max_length)
    if known is not None:
        findings.checked.append("the tokens of every picture, counted again by its size")
    if files and not unlike:
        n, found = retokenise(dataset, files, loaded, template, n_retokenised, known)
        findings.n_rows_retokenised = n
        findings.findings += found
        findings.checked.append(f"{n} samples tokenised again from the source")
    return findings


def _n_workers(n_bytes: int) -> int:
    return n_cores() if n_bytes >= MUCH_BYTES else 1


def _contradictions(manifest: Manifest) -> Iterator[Finding]:
    """What in the manifest contradicts the rest of it."""
    for path, message in contradictions(manifest):
        yield Finding("manifest", f"$.{path}: {message}")


def guarded(code: str, found: Iterable[Finding]) -> Iterator[Finding]:
    """Findings; what nobody foresaw, and stops the search, is one of them."""
    try:
        yield from found
    except StorageError:
        raise
    except FOREIGN as err:
        yield Finding(code, f"cannot be checked to its end: {in_words(err)}")


def expectation_of(
    manifest: Manifest, build: Build | None = None, processor: VisionProcessor | None = None
) -> Expectation:
    """What the shards of a build must agree with (of the first one when it is left out)."""
    build = build or builds_of(manifest)[0]
    recipe = manifest.recipe
    images = manifest.image_recipe or {}
    return Expectation(
        recipe=recipe,
        rules=RowRules.of(recipe),
        vocab_size=recipe.get("tokenizer", {}).get("vocab_size"),
        max_length=recipe.get("max_length"),
        source_names=build.source_names,
        picture_token=images.get("image_token") if images.get("processor") else None,
        processor=processor,
    )


def _check_shards(
    dataset: Dataset,
    workers: int,
    on_shard: OnShard | None,
    processor: VisionProcessor | None,
) -> Iterator[ShardReport]:
    manifest = dataset.manifest
    total = sum(shard.n_bytes for shard in manifest.shards)
    builds = builds_by_shard(manifest)
    expected = {
        build.first_source: expectation_of(manifest, build, processor)
        for build in builds_of(manifest)
    }
    jobs = [(number, expected[build.first_source]) for number, build in enumerate(builds)]
    reports = _run(dataset, jobs, workers)
    for entry, build, report in zip(manifest.shards, builds, reports, strict=True):
        if on_shard:
            on_shard(entry.n_bytes, total)
        report.sources += np.uint32(build.first_source)
        yield report


def _run(
    dataset: Dataset, jobs: Sequence[tuple[int, Expectation]], workers: int
) -> Iterator[ShardReport]:
    if workers <= 1 or len(jobs) <= 1:
        yield from (check_shard(dataset, *job) for job in jobs)
        return
    with WorkerPool(min(workers, len(jobs)), _begin, dataset) as pool:
        yield from pool.map(_check, jobs)


_given: list[Dataset] = []
"""The dataset that a worker process checks, handed over once."""


def _begin(dataset: Dataset) -> None:
    _given.append(dataset)


def _check(job: tuple[int, Expectation]) -> ShardReport:
    return check_shard(_given[0], *job)


def _rejects(dataset: Dataset, findings: Findings) -> list[RejectLine]:
    entry = dataset.manifest.rejects
    name = entry.name if entry else REJECTS_NAME
    try:
        return read_rejects(dataset, name)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, StorageError) as err:
        if isinstance(err, StorageError) and not dataset.is_local:
            raise
        findings.findings.append(Finding("rejects", f"{name} is damaged: {in_words(err)}"))
        return []
