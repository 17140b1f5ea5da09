"""A shard as a later minor version might write it: by tarfile and numpy alone."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from shardkit.format.layout import INDEX_DTYPE
from shardkit.format.samples import Samples

VERSION = "1.9"


def later_shard(path: Path, samples: Samples, version: str = VERSION) -> None:
    """Write the samples with a third token row, `weights`, and a member `KEY.later` each."""
    recipe = {"packing": "none", "token_rows": ["input_ids", "labels", "weights"]}
    digest = hashlib.sha256(_canonical(recipe)).hexdigest()
    manifest = _canonical(
        {"format": "shardkit", "version": version, "recipe": recipe, "recipe_sha256": digest}
    )
    members = [("__shardkit__/manifest", manifest)]
    index = np.zeros(len(samples), INDEX_DTYPE)
    for i in range(len(samples)):
        begin = len(_tar(members))
        part = slice(int(samples.starts[i]), int(samples.starts[i + 1]))
        rows = [samples.ids[part], samples.labels[part], np.full(len(samples.ids[part]), 7)]
        members.append((f"{i:08d}.tokens.npy", _npy(np.array(rows, "<i4"))))
        images = samples.images_of(i)
        members += [(f"{i:08d}.{k}.jpg", image.data) for k, image in enumerate(images)]
        about = [{"name": one.name, "width": one.width, "height": one.height} for one in images]
        if images:
            members.append((f"{i:08d}.json", _canonical({"ids": ["x"], "images": about, "new": 1})))
        members.append((f"{i:08d}.later", b"something"))
        span = _tar(members)[begin:]
        entry = {"offset": begin, "span": len(span), "hash": xxhash.xxh3_64_intdigest(span)}
        entry |= {"n_tokens": len(rows[0]), "length": len(rows[0]), "cost2": len(rows[0]) ** 2}
        entry |= {"n_supervised": int((rows[1] != -100).sum()), "n_images": len(images)}
        for name, value in entry.items():
            index[name][i] = value
    place = len(_tar(members)) + 512
    members.append(("__shardkit__/index", _npy(index)))
    members.append(("__shardkit__/later", b"something else"))
    fields = {
        **{"format": "shardkit", "version": version, "n_samples": len(samples), "n_rows": 3},
        "n_bytes": len(_tar(members)) + 2048,
        "manifest": [512, len(manifest), _xxh3(manifest)],
        "index": [place, len(members[-2][1]), _xxh3(members[-2][1])],
        "segments": None,
    }
    body = _canonical(fields)[:-1]
    footer = (body + b',"xxh3":"' + _xxh3(body).encode() + b'"}').ljust(511) + b"\n"
    path.write_bytes(_tar([*members, ("__shardkit__/footer", footer)]) + bytes(1024))


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _xxh3(data: bytes) -> str:
    return f"{xxhash.xxh3_64_intdigest(data):016x}"


def _npy(array: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _tar(members: list[tuple[str, bytes]]) -> bytes:
    out = b""
    for name, data in members:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        out += info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)
    return out
