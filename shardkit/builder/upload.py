"""A pack whose output is a URL: built in a folder on this machine, then uploaded, manifest last."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from shardkit.builder.folder import is_ours
from shardkit.builder.options import PackOptions
from shardkit.builder.plan import make_plan
from shardkit.dataset import read_manifest
from shardkit.errors import BadManifest, BuildConflict, UsageError
from shardkit.format.atomic import appear
from shardkit.format.differing import differing
from shardkit.format.layout import MANIFEST_NAME, TOKENIZER_FOLDER
from shardkit.format.manifest import Manifest
from shardkit.storage.cache_folder import default_folder
from shardkit.storage.open import text_of
from shardkit.storage.remote import RemoteStore, open_remote
from shardkit.storage.store import File


def pack_to_url(
    build: Callable[[Path], Manifest],
    inputs: Sequence[str | Path],
    options: PackOptions,
    url: str,
    *,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    work_dir: str | Path | None = None,
    on_bytes: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Build into `work_dir` and upload; a killed run goes on when it is run again.

    `build` packs into a folder. A dataset of the same inputs and options that is at the URL
    already is the result. The work folder is removed when all is uploaded. Raises BuildConflict
    when another dataset is there, StorageError, and what `build` raises.
    """
    url = text_of(url)
    work = _work_folder(url, work_dir)
    store = open_remote(url, storage_options)
    there = _manifest_at(store)
    if there is not None and not overwrite:
        with tempfile.TemporaryDirectory() as spool:
            plan = make_plan(inputs, options, spool=Path(spool), storage_options=storage_options)
        if there.fingerprint == plan.fingerprint:
            if _record(work).exists():  # a run that was killed after its last upload
                _forget(work)
            return there
        raise BuildConflict(
            "there is another dataset already: "
            + "; ".join(differing(there.identity, plan.identity)),
            where=store.root,
            fix="Give another URL with --out, or replace the dataset with --overwrite.",
        )
    manifest = build(work)
    if there is not None:
        store.remove(MANIFEST_NAME)
    upload(work, manifest, store, on_bytes)
    _forget(work)
    return manifest


def _work_folder(url: str, work_dir: str | Path | None) -> Path:
    """Where the dataset is built; raises UsageError for a folder that cannot be removed after."""
    if work_dir is None:
        return _default_work(url)
    work = Path(work_dir).resolve()
    if work == Path.cwd() or work in Path.cwd().parents:
        raise UsageError(
            "work_dir is the current folder, or one around it",
            found=str(work_dir),
            fix="Name a new folder with --work-dir: it is removed when all is uploaded.",
        )
    return work


def _forget(work: Path) -> None:
    """Remove a work folder whose dataset is uploaded, and last the record of the upload."""
    shutil.rmtree(work, ignore_errors=True)
    _record(work).unlink(missing_ok=True)


def upload(
    folder: Path,
    manifest: Manifest,
    store: RemoteStore,
    on_bytes: Callable[[int, int], None] | None = None,
) -> None:
    """Copy a dataset; what an earlier, killed run has uploaded is not uploaded again.

    That is what its record names with the same sha256, and what has the right size there.
    """
    path = _record(folder)
    done: dict[str, str] = {}
    if path.exists():
        done = _recorded(path, store.root)
    n_done, n_total = 0, sum(file.n_bytes for file in _files(manifest))
    for file in _files(manifest):
        if done.get(file.name) != file.sha256 or store.size(file.name) != file.n_bytes:
            store.put(folder / file.name, file.name)
            done[file.name] = file.sha256
            with appear(path) as out:
                out.write(msgspec.json.encode(_Record(store.root, done)))
        n_done += file.n_bytes
        if on_bytes is not None:
            on_bytes(n_done, n_total)
    _remove_older(manifest, store)
    store.put(folder / MANIFEST_NAME, MANIFEST_NAME)


def _remove_older(manifest: Manifest, store: RemoteStore) -> None:
    """Remove files of an earlier dataset, or of an upload that was given up."""
    named = {TOKENIZER_FOLDER, *(file.name for file in _files(manifest))}
    for name in store.names() or ():
        if is_ours(name) and name not in named:
            store.remove(name)


def _recorded(path: Path, url: str) -> dict[str, str]:
    """What an earlier run has uploaded to this URL, by name; nothing when that is not readable."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=_Record)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    return record.files if record.url == url else {}


class _Record(msgspec.Struct):
    """What was uploaded, beside the work folder."""

    url: str
    files: dict[str, str]


def _files(manifest: Manifest) -> Iterator[File]:
    for shard in manifest.shards:
        yield File(shard.name, shard.n_bytes, shard.sha256)
    for entry in manifest.tokenizer_files:
        yield File(f"{TOKENIZER_FOLDER}/{entry.name}", entry.n_bytes, entry.sha256)
    if manifest.rejects is not None:
        yield File(manifest.rejects.name, manifest.rejects.n_bytes, manifest.rejects.sha256)


def _manifest_at(store: RemoteStore) -> Manifest | None:
    if store.size(MANIFEST_NAME) is None:
        return None
    try:
        return read_manifest(store)
    except BadManifest as err:
        raise BuildConflict(
            "there is a manifest already that cannot be read",
            where=store.url(MANIFEST_NAME),
            fix="Remove it, or give another URL with --out.",
        ) from err


def _default_work(url: str) -> Path:
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    return default_folder() / "builds" / digest


def _record(folder: Path) -> Path:
    """The file beside a work folder, where only a dataset may be, that tells what is uploaded."""
    return folder.with_name(f"{folder.name}.uploaded")
