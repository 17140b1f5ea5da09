"""A pack whose output is a bucket, killed and run again: there is all or no manifest."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from servers import S3_ENVIRONMENT, s3_server

from campaign.commands import Limits, run, start
from campaign.room import Packed, Room, pack_words
from campaign.verdict import Outcome, Verdict

SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class _Bucket:
    url: str
    files: Any
    """fsspec's file system."""


_buckets: dict[int, _Bucket] = {}
_open = contextlib.ExitStack()


def case(room: Room, chance: Random, number: int) -> Verdict:
    """One to three kills, then the end: the objects are the files, and no work folder is left."""
    packed, bucket = room.packed("text"), _bucket()
    url = f"s3://bucket/case-{os.getpid()}-{number}"
    with room.scratch() as folder:
        limits = Limits(environment={**S3_ENVIRONMENT, "SHARDKIT_CACHE": str(folder / "cache")})
        option = ["--storage-option", f"endpoint_url={bucket.url}"]
        argv = [*pack_words(packed.source, url, packed.options), *option]
        took, said = _took(room, packed, limits), []
        for _ in range(chance.choice([1, 2, 3])):
            seconds = chance.uniform(0, 1.3 * took)
            command = start(argv, folder / "log", limits)
            said.append(f"{seconds:.3f} s{'' if command.wait(seconds) is None else ' (done)'}")
            command.kill()
            there = _there(bucket, url)
            if "manifest.json" in there and set(there) != set(packed.files):
                fault = f"upload, killed after {', '.join(said)}"
                return Verdict(Outcome.SILENT, fault, f"manifest beside {sorted(there)} only")
        ran = run(argv, folder / "log", limits, seconds=SECONDS)
        fault = f"upload, killed after {', '.join(said)}"
        n_kills = {"kills of upload": sum(not one.endswith("(done)") for one in said)}
        if ran.status != 0:
            outcome = Outcome.HANG if ran.status is None else Outcome.FOREIGN
            return Verdict(outcome, fault, ran.said[-400:], n_kills)
        left = [p.name for p in (folder / "cache").glob("builds/**/*") if p.is_file()]
        expected = {name: hashlib.sha256(data).hexdigest() for name, data in packed.data.items()}
        if _there(bucket, url) != expected or left:
            seen = f"other objects, or left in the cache: {left}"
            return Verdict(Outcome.SILENT, fault, seen, n_kills)
        return Verdict(Outcome.SAME, fault, counts=n_kills)


def _bucket() -> _Bucket:
    """A bucket of a server that ends with this process."""
    if os.getpid() not in _buckets:
        import fsspec

        os.environ.update(S3_ENVIRONMENT)
        url = _open.enter_context(s3_server())
        files = fsspec.filesystem("s3", endpoint_url=url)
        files.mkdir("bucket")
        _buckets[os.getpid()] = _Bucket(url, files)
    return _buckets[os.getpid()]


def close() -> None:
    """End the server of this process."""
    _buckets.clear()
    _open.close()


def _there(bucket: _Bucket, url: str) -> dict[str, str]:
    """The sha256 of every object below a URL."""
    root = url.removeprefix("s3://")
    bucket.files.invalidate_cache()
    if not bucket.files.exists(root):
        return {}
    found = bucket.files.cat(bucket.files.find(root))
    return {
        str(Path(name).relative_to(root)): hashlib.sha256(data).hexdigest()
        for name, data in found.items()
    }


_seconds: dict[Path, float] = {}


def _took(room: Room, packed: Packed, limits: Limits) -> float:
    """Seconds that one upload takes."""
    if room.folder not in _seconds:
        option = ["--storage-option", f"endpoint_url={_bucket().url}"]
        url = f"s3://bucket/first-{os.getpid()}"
        argv = [*pack_words(packed.source, url, packed.options), *option]
        with room.scratch() as folder:
            run(["--version"], folder / "log", seconds=SECONDS)
            began = time.monotonic()
            ran = run(argv, folder / "log", limits, seconds=SECONDS)
        if ran.status != 0:
            raise RuntimeError(f"an upload fails without a kill: {ran.said}")
        _seconds[room.folder] = time.monotonic() - began
    return _seconds[room.folder]
