"""Is a dataset whole, and is it what its manifest says?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from shardkit.check.findings import Finding, Findings
from shardkit.check.ledger import RejectLine, check_files, check_ledger, read_rejects
from shardkit.check.meaning import check_identity, retokenise
from shardkit.check.shards import Expectation, ShardReport, check_shard
from shardkit.format.builds import Build, builds_by_shard, builds_of
from shardkit.format.layout import MANIFEST_NAME, REJECTS_NAME
from shardkit.format.manifest import Manifest, ShardEntry, load_manifest
from shardkit.tokens import load_tokenizer

OnShard = Callable[[int, int], None]
"""Called with (bytes done since the last call, bytes of all shards)."""


def verify(
    path: str | Path,
    *,
    tokenizer: Any = None,
    template: Any = None,
    max_length: int | None = None,
    sources: Sequence[str | Path] = (),
    workers: int = 1,
    n_retokenised: int = 64,
    on_shard: OnShard | None = None,
) -> Findings:
    """Check every byte of a dataset; nothing is written.

    Tar structure, every hash, index against members, manifest against shards, ids inside the
    vocabulary, labels equal to ids or -100, lengths, segments, images, and the account of every
    source row. `tokenizer`, `template`, `max_length`: must be what the dataset was packed with.
    `sources`: the input files; about `n_retokenised` rows of them are encoded again and compared.

    What is wrong is in the result, not raised; raised are BadManifest and UnsupportedVersion (no
    dataset at all), TokenizerError, TemplateError and BadInput (a given file cannot be read).
    """
    root = Path(path)
    root = root.parent if root.name == MANIFEST_NAME else root
    manifest = load_manifest(root)
    findings = Findings(str(root), n_shards=len(manifest.shards), n_samples=manifest.n_samples)
    findings.n_tokens, findings.n_images = manifest.n_tokens, manifest.n_images
    findings.n_bytes = sum(shard.n_bytes for shard in manifest.shards)
    findings.findings += check_files(root, manifest)
    reports = list(_check_shards(root, manifest, workers, on_shard))
    for report in reports:
        findings.findings += report.findings
    findings.checked = ["every byte of every shard against its hashes", "tar structure", "index"]
    findings.checked += ["ids, labels and lengths of every sample", "the account of every row"]
    opened = [r for r in reports if not any(f.code == "shard-open" for f in r.findings)]
    if len(opened) == len(reports):
        findings.findings += check_ledger(manifest, reports, _rejects(root, manifest, findings))
    loaded = load_tokenizer(tokenizer) if tokenizer is not None else None
    findings.findings += check_identity(root, manifest, loaded, template, max_length)
    if sources:
        n, found = retokenise(root, manifest, sources, loaded, template, n_retokenised)
        findings.n_rows_retokenised = n
        findings.findings += found
        findings.checked.append(f"{n} samples tokenised again from the source")
    return findings


def expectation_of(manifest: Manifest, build: Build | None = None) -> Expectation:
    """What the shards of a build must agree with (of the first one when it is left out)."""
    build = build or builds_of(manifest)[0]
    recipe = manifest.recipe
    images = recipe.get("images") or {}
    return Expectation(
        fingerprint=build.fingerprint,
        identity=build.identity,
        is_packed=manifest.is_packed,
        vocab_size=recipe.get("tokenizer", {}).get("vocab_size"),
        max_length=recipe.get("max_length"),
        image_tokens=images.get("image_tokens", 1),
        image_token=images.get("image_token"),
        source_names=build.source_names,
    )


def _check_shards(
    root: Path, manifest: Manifest, workers: int, on_shard: OnShard | None
) -> Iterator[ShardReport]:
    total = sum(shard.n_bytes for shard in manifest.shards)
    builds = builds_by_shard(manifest)
    expected = {
        build.first_source: expectation_of(manifest, build) for build in builds_of(manifest)
    }
    jobs = [
        (root / entry.name, entry, expected[build.first_source])
        for entry, build in zip(manifest.shards, builds, strict=True)
    ]
    for entry, build, report in zip(manifest.shards, builds, _run(jobs, workers), strict=True):
        if on_shard:
            on_shard(entry.n_bytes, total)
        report.sources += np.uint32(build.first_source)
        yield report


def _run(
    jobs: Sequence[tuple[Path, ShardEntry, Expectation]], workers: int
) -> Iterator[ShardReport]:
    if workers <= 1 or len(jobs) <= 1:
        yield from (check_shard(*job) for job in jobs)
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_check, jobs)


def _check(job: tuple[Path, ShardEntry, Expectation]) -> ShardReport:
    return check_shard(*job)


def _rejects(root: Path, manifest: Manifest, findings: Findings) -> list[RejectLine]:
    name = manifest.rejects.name if manifest.rejects else REJECTS_NAME
    try:
        return read_rejects(root / name)
    except msgspec.DecodeError as err:
        findings.findings.append(Finding("rejects", f"{name} is damaged: {err}"))
        return []
