"""Writes the test vectors of docs/format.md from its text alone: no code of shardkit is used."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import xxhash

M = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix64(z: int) -> int:
    """Section 8.1."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M
    return z ^ (z >> 31)


def key(*parts: int) -> int:
    """Section 8.1."""
    k = 0
    for p in parts:
        k = mix64(((k ^ p) + GOLDEN) & M)
    return k


def permute(i: int, n: int, k: int) -> int:
    """Section 8.2."""
    h = 1
    while 4**h < n:
        h += 1
    m = 2**h - 1
    while True:
        left, r = i >> h, i & m
        for j in range(6):
            left, r = r, left ^ (mix64(r ^ mix64((k + (j + 1) * GOLDEN) & M)) & m)
        i = (left << h) | r
        if i < n:
            return i


def sequence(
    sizes: list[int], seed: int, epoch: int, lanes: int, chunk: int, shuffle: str, window: int
) -> list[tuple[int, int]]:
    """Sections 8.3 and 8.4, as lists."""
    n = len(sizes)
    order = [j if shuffle == "none" else permute(j, n, key(seed, epoch, 1)) for j in range(n)]
    run = [(shard, row) for shard in order for row in range(sizes[shard])]
    lanes = 1 if shuffle == "none" else lanes
    b, e = divmod(len(run), lanes)
    cut = [lane * b + min(lane, e) for lane in range(lanes + 1)]
    shuffled = []
    for lane in range(lanes):
        part = run[cut[lane] : cut[lane + 1]]
        s = len(part)
        if shuffle == "full":
            part = [part[permute(x, s, key(seed, epoch, 2, lane))] for x in range(s)]
        if shuffle == "window":
            part = [
                part[
                    x // window * window
                    + permute(
                        x % window,
                        min(window, s - x // window * window),
                        key(seed, epoch, 2, lane, x // window),
                    )
                ]
                for x in range(s)
            ]
        shuffled.append(part)
    q = b // chunk
    turns = [
        sample
        for turn in range(q)
        for part in shuffled
        for sample in part[turn * chunk : (turn + 1) * chunk]
    ]
    return turns + [sample for part in shuffled for sample in part[q * chunk :]]


def mixture(
    sizes: list[list[int]], weights: list[int], seed: int, epoch: int, block: int, n_blocks: int
) -> list[tuple[int, int, int]]:
    """Section 8.7, block by block: (member, shard, row); `epoch` is 0 unless it is endless."""
    total = sum(weights)
    rests = [weight * block % total for weight in weights]
    sums = [0, *(sum(rests[: i + 1]) * 2**32 // total for i in range(len(rests)))]
    given = [0] * len(weights)
    own: dict[tuple[int, int], list[tuple[int, int]]] = {}
    out = []
    for n in range(n_blocks):
        v = int(f"{n % 2**32:032b}"[::-1], 2)
        places = []
        for i, weight in enumerate(weights):
            extra = (sums[i + 1] + v) // 2**32 - (sums[i] + v) // 2**32
            for _ in range(weight * block // total + extra):
                e, x = divmod(given[i], sum(sizes[i]))
                if (i, e) not in own:
                    own[i, e] = sequence(sizes[i], key(seed, 4, i), e, 1, 1, "full", 4096)
                places.append((i, *own[i, e][x]))
                given[i] += 1
        out += [places[permute(o, block, key(seed, epoch, 3, n))] for o in range(block)]
    return out


def mixture_vectors() -> list[dict[str, object]]:
    """Whole mixtures."""
    cases = [
        ([[5], [7]], [1, 1], 0, 0, 4, 5),
        ([[9, 3], [2], [4, 4]], [5, 2, 3], 7, 0, 7, 12),
        ([[30], [1, 1]], [99, 1], 2**64 - 1, 0, 8, 9),
    ]
    names = ["sizes", "weights", "seed", "epoch", "block", "n_blocks"]
    return [{**dict(zip(names, case, strict=True)), "out": mixture(*case)} for case in cases]


def balanced(
    costs: list[int],
    lanes: int,
    chunk: int,
    group: int,
    scope: str,
    step: int,
    rows: int,
    seed: int,
    epoch: int,
) -> list[int]:
    """Section 8.8: for each position, the position of S whose sample stands there."""

    def dearest_first(positions: list[int]) -> list[int]:
        return sorted(positions, key=lambda place: (-costs[place], place))

    out = []
    for m in range(-(-len(costs) // group)):
        a = m * group
        k = (min(a + group, len(costs)) - a) // step
        places = list(range(a, a + k * step))

        if scope == "lanes":
            laid = [0] * len(places)
            for kind in range(lanes):
                own = [p for p in places if p // chunk % lanes == kind]
                for p, source in zip(own, dearest_first(own), strict=True):
                    laid[p - a] = source
        else:
            laid = []
            if scope == "group":
                places = dearest_first(places)
            for s in range(k):
                one = dearest_first(places[s * step : (s + 1) * step])
                dealt = list(one)
                if step % rows == 0:
                    ranks = step // rows
                    for j, source in enumerate(one):
                        i, r = divmod(j, ranks)
                        r = ranks - 1 - r if i % 2 else r
                        dealt[r * rows + i] = source
                laid += dealt
        for s in range(k):
            t = s if scope == "step" else permute(s, k, key(seed, epoch, 5, m))
            out += laid[t * step : (t + 1) * step]
        out += range(a + k * step, min(a + group, len(costs)))
    return out


def balance_vectors() -> list[dict[str, object]]:
    """Whole epochs."""
    names = ["costs", "lanes", "chunk", "group", "scope", "step", "rows", "seed", "epoch"]
    cases = []
    for scope in ("group", "lanes", "step"):
        for n, lanes, chunk, group, step, rows in [
            (23, 2, 2, 8, 4, 2),
            (40, 3, 2, 18, 6, 2),
            (17, 1, 4, 12, 4, 3),
            (9, 2, 1, 20, 10, 5),
        ]:
            costs = [mix64(i) % 50 for i in range(n)]
            case = (costs, lanes, chunk, group, scope, step, rows, 7, 3)
            out = balanced(*case)
            cases.append({**dict(zip(names, case, strict=True)), "out": out})
    return cases


def order_vectors() -> dict[str, object]:
    """mix64, key, permute and whole sequences."""
    cases = [
        ([5], 0, 0, 1, 1, "full", 4096),
        ([3, 4, 5], 0, 0, 2, 2, "full", 4096),
        ([3, 4, 5], 7, 1, 2, 2, "full", 4096),
        ([10, 1, 0, 22], 42, 3, 4, 2, "full", 4096),
        ([10, 1, 0, 22], 42, 3, 4, 2, "window", 3),
        ([9, 9, 9], 2**63 + 5, 2**33, 5, 3, "window", 4),
        ([4, 4], 1, 0, 3, 2, "none", 4096),
        ([1, 1, 1], 5, 0, 8, 4, "full", 4096),
    ]
    names = ["sizes", "seed", "epoch", "lanes", "chunk", "shuffle", "window"]
    return {
        "mix64": [[z, mix64(z)] for z in [0, 1, 2, GOLDEN, M, 2**63]],
        "key": [[list(p), key(*p)] for p in [(0,), (0, 0, 1), (7, 2, 1), (M, M, 2, 3)]],
        "permute": [
            {"n": n, "key": k, "out": [permute(i, n, k) for i in range(n)]}
            for n, k in [(1, 9), (2, 9), (10, key(7, 0, 1)), (17, M), (100, 12345)]
        ],
        "permute_large": [
            {"n": n, "key": k, "i": i, "out": permute(i, n, k)}
            for n, k in [(10**6, 1), (10**9 + 7, 2), (10**12, 3)]
            for i in [0, 1, n // 2, n - 1]
        ],
        "sequence": [
            {**dict(zip(names, case, strict=True)), "out": sequence(*case)} for case in cases
        ],
        "mixture": mixture_vectors(),
        "balance": balance_vectors(),
    }


def canonical(value: object) -> bytes:
    """Section 11.1."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def xxh3(data: bytes) -> str:
    """Section 2."""
    return f"{xxhash.xxh3_64_intdigest(data):016x}"


def shard_vector() -> dict[str, object]:
    """A shard of two samples by Python's tarfile and numpy.save, by the tables of 5 and 6."""
    recipe = {"packing": "none"}
    manifest = shard_manifest(recipe)
    rows = [([5, 6, 7], [-100, 6, 7]), ([9], [9])]
    members = [("__shardkit__/manifest", manifest)]
    for i, row in enumerate(rows):
        file = io.BytesIO()
        np.save(file, np.array(row, "<i4"))
        members.append((f"{i:08d}.tokens.npy", file.getvalue()))
    index = np.zeros(2, INDEX)
    stream = tar(members)
    offset = 512 + -(-len(manifest) // 512) * 512
    for i in range(2):
        span = stream[offset : offset + 1024]
        supervised = sum(label != -100 for label in rows[i][1])
        n, first = len(rows[i][0]), int(rows[i][1][0] != -100)
        hashed = int(xxh3(span), 16)
        index[i] = (offset, 1024, 10 + i, hashed, n * n, n, n, supervised, 0, 0, i, 0, 0, 0, first)
        offset += 1024
    data, footer = finished(members, manifest, index, None)
    return {
        "recipe": recipe,
        "tokens": rows,
        "records": [10, 11],
        "n_cut": [0, 1],
        "sha256": hashlib.sha256(data).hexdigest(),
        "footer_xxh3": xxh3(footer),
        "hex": data.hex(),
    }


def packed_vector() -> dict[str, object]:
    """A pack of two documents, of which the second has an image that the model gives 4 places."""
    images = {"image_token": -200, "image_tokens": 4, "processor": None}
    recipe = {"packing": "concat", "images": images}
    manifest = shard_manifest(recipe)
    row = [[5, 6, 7, -200, 8], [-100, 6, 7, -100, 8]]
    file = io.BytesIO()
    np.save(file, np.array(row, "<i4"))
    meta = {
        "ids": [None, "b"],
        "images": [{"name": "x/b.jpg", "width": 2, "height": 1}],
    }
    members = [
        ("__shardkit__/manifest", manifest),
        ("00000000.tokens.npy", file.getvalue()),
        ("00000000.0.jpg", b"not a picture"),
        ("00000000.json", canonical(meta)),
    ]
    begin = 512 + -(-len(manifest) // 512) * 512
    span = tar(members)[begin:]
    hashed = int(xxh3(span), 16)
    index = np.zeros(1, INDEX)
    index[0] = (begin, len(span), 3, hashed, 9 + 25, 5, 8, 3, 1, 4, 7, 1, 0, 0, 0)
    segments = np.zeros(2, SEGMENT)
    segments[0] = (0, 0, 3, 1, 3, 0, 0, 0, 0)
    segments[1] = (0, 3, 2, 0, 9, 6, 1, 2, 7)
    data, footer = finished(members, manifest, index, segments)
    return {
        "recipe": recipe,
        "tokens": row,
        "meta": meta,
        "image": b"not a picture".hex(),
        "segments": segments.tolist(),
        "sha256": hashlib.sha256(data).hexdigest(),
        "footer_xxh3": xxh3(footer),
        "hex": data.hex(),
    }


def manifest_vector() -> dict[str, object]:
    """A manifest with the line that vouches for it, and one with a flipped bit."""
    fields = {"format": "shardkit", "version": "1.0", "writer": "by hand", "sources": []}
    lines = [canonical(name) + b": " + canonical(value) for name, value in fields.items()]
    body = b"{\n" + b",\n".join(lines)
    text = body + b',\n"sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'
    return {"good": text.decode(), "bad": text.decode().replace("by hand", "by hane")}


INDEX = np.dtype(
    [(name, "<u8") for name in ("offset", "span", "record", "hash", "cost2")]
    + [
        (name, "<u4")
        for name in (
            *("n_tokens", "length", "n_supervised", "n_images", "n_image_tokens"),
            *("n_cut", "source", "piece", "flags", "n_first"),
        )
    ]
)
SEGMENT = np.dtype(
    [(name, "<u4") for name in ("sample", "start", "length", "source")]
    + [("record", "<u8")]
    + [(name, "<u4") for name in ("first", "n_images", "piece", "n_cut")]
)


def shard_manifest(recipe: object) -> bytes:
    """Section 5: the first member."""
    digest = hashlib.sha256(canonical(recipe)).hexdigest()
    fields = {"format": "shardkit", "version": "1.0", "recipe": recipe, "recipe_sha256": digest}
    return canonical(fields)


def finished(
    members: list[tuple[str, bytes]],
    manifest: bytes,
    index: np.ndarray,
    segments: np.ndarray | None,
) -> tuple[bytes, bytes]:
    """Sections 5 and 6: the whole shard and its footer."""
    places = []
    for name, array in (("index", index), ("segments", segments)):
        if array is None:
            places.append(None)
            continue
        data = npy(array)
        places.append([len(tar(members)) + 512, len(data), xxh3(data)])
        members.append((f"__shardkit__/{name}", data))
    body = canonical(
        {
            "format": "shardkit",
            "version": "1.0",
            "n_samples": len(index),
            "n_rows": 2,
            "n_bytes": len(tar(members)) + 512 + 512 + 1024,
            "manifest": [512, len(manifest), xxh3(manifest)],
            "index": places[0],
            "segments": places[1],
        }
    )[:-1]
    footer = (body + b',"xxh3":"' + xxh3(body).encode() + b'"}').ljust(511) + b"\n"
    members.append(("__shardkit__/footer", footer))
    return tar(members) + bytes(1024), footer


def npy(array: np.ndarray) -> bytes:
    """Section 6: the shortest header that ends at a multiple of 64 bytes."""
    text = f"{{'descr': {array.dtype.descr!r}, 'fortran_order': False, 'shape': {array.shape!r}, }}"
    text = text.ljust(-(-(len(text) + 11) // 64) * 64 - 11) + "\n"
    magic = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
    return magic + text.encode() + array.tobytes()


def tar(members: list[tuple[str, bytes]]) -> bytes:
    """The members without the end-of-archive blocks."""
    out = b""
    for name, data in members:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        out += info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)
    return out


if __name__ == "__main__":
    folder = Path(__file__).parent
    for name, vectors in [
        ("order", order_vectors()),
        ("shard", shard_vector()),
        ("packed", packed_vector()),
        ("manifest", manifest_vector()),
    ]:
        (folder / f"{name}.json").write_text(json.dumps(vectors) + "\n")
