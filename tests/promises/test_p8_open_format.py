"""P8: GNU tar, tarfile, webdataset and datasets read the shards with no shardkit installed."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from make_samples import make_samples
from synthetic import PLACEHOLDER, ids_of, make_dataset, make_image

from shardkit.format.samples import Samples
from shardkit.format.shard import ShardWriter

LENGTHS = [3, 40, 700, 1]


@pytest.fixture
def samples() -> Samples:
    return make_samples(LENGTHS)


@pytest.fixture
def shard(tmp_path: Path, samples: Samples) -> Path:
    path = tmp_path / "shard-00000.tar"
    with ShardWriter(path, recipe={}) as writer:
        writer.write(samples)
        writer.close()
    return path


def rows_of(samples: Samples, i: int) -> list[list[int]]:
    part = slice(int(samples.starts[i]), int(samples.starts[i + 1]))
    return [samples.ids[part].tolist(), samples.labels[part].tolist()]


def test_gnu_tar_extracts(shard: Path, samples: Samples, tmp_path: Path) -> None:
    """tar -x gives .npy files that numpy.load reads without pickle."""
    subprocess.run(["tar", "-xf", shard, "-C", tmp_path], check=True)
    for i in range(len(samples)):
        array = np.load(tmp_path / f"{i:08d}.tokens.npy", allow_pickle=False)
        assert array.tolist() == rows_of(samples, i)
    assert (tmp_path / "__shardkit__/footer").stat().st_size == 512


def test_tarfile_reads(shard: Path, samples: Samples) -> None:
    """Python's tarfile lists the members in order, and index and segments are plain .npy."""
    with tarfile.open(shard) as tar:
        assert [m.name for m in tar] == [
            "__shardkit__/manifest",
            *(f"{i:08d}.tokens.npy" for i in range(len(LENGTHS))),
            "__shardkit__/index",
            "__shardkit__/footer",
        ]
        index = np.load(io.BytesIO(read(tar, "__shardkit__/index")), allow_pickle=False)
        assert index["n_tokens"].tolist() == LENGTHS


def read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


def run(code: str, *arguments: object) -> str:
    """In a fresh interpreter that warns of nothing and cannot import shardkit."""
    guard = "import sys; sys.modules['shardkit'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", guard + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_webdataset_reads(shard: Path, samples: Samples) -> None:
    """Stock webdataset yields our arrays and none of our own members."""
    code = """
import json, webdataset
dataset = webdataset.WebDataset(sys.argv[1], shardshuffle=False).decode()
print(json.dumps([[s["__key__"], s["tokens.npy"].tolist()] for s in dataset]))
"""
    expected = [[f"{i:08d}", rows_of(samples, i)] for i in range(len(samples))]
    assert eval_json(run(code, shard)) == expected


def test_webdataset_reads_zstd_through_a_pipe(samples: Samples, tmp_path: Path) -> None:
    """A .tar.zst is a plain Zstandard file: `pipe:zstd -dc FILE` is all that webdataset needs."""
    if shutil.which("zstd") is None:
        pytest.skip("needs the zstd command")
    path = tmp_path / "shard-00000.tar.zst"
    with ShardWriter(path, recipe={}, compression="zstd") as writer:
        writer.write(samples)
        writer.close()
    code = """
import json, webdataset
dataset = webdataset.WebDataset(f"pipe:zstd -dc {sys.argv[1]}", shardshuffle=False).decode()
print(json.dumps([[s["__key__"], s["tokens.npy"].tolist()] for s in dataset]))
"""
    expected = [[f"{i:08d}", rows_of(samples, i)] for i in range(len(samples))]
    assert eval_json(run(code, path)) == expected


@pytest.mark.slow
def test_datasets_reads(shard: Path, samples: Samples, tmp_path: Path) -> None:
    """datasets.load_dataset("webdataset") yields our arrays and none of our own members."""
    code = """
import json, datasets
rows = datasets.load_dataset("webdataset", data_files=sys.argv[1], split="train",
                             cache_dir=sys.argv[2], streaming=True)
print(json.dumps([[r["__key__"], [list(map(int, x)) for x in r["tokens.npy"]]] for r in rows]))
"""
    expected = [[f"{i:08d}", rows_of(samples, i)] for i in range(len(samples))]
    assert eval_json(run(code, shard, tmp_path / "cache")) == expected


@pytest.mark.slow
def test_datasets_reads_rows_with_and_without_images(tmp_path: Path) -> None:
    """With `features=` a column that a row lacks is None; encoded images come out as stored."""
    n_images = {1: 1, 2: 2}
    make_dataset(tmp_path, [4], n_images=n_images)
    code = """
import json, datasets
from datasets import Features, Image, List, Value
images = {f"{k}.png": Image(decode=False) for k in range(2)}
text = {name: Value("string") for name in ("__key__", "__url__")}
features = Features({**text, "tokens.npy": List(List(Value("int32"))), **images})
rows = datasets.load_dataset("webdataset", data_files=sys.argv[1], split="train",
                             cache_dir=sys.argv[2], streaming=True, features=features)
print(json.dumps([[r["__key__"], list(map(int, r["tokens.npy"][0])),
                   [r[name]["bytes"].hex() for name in images if r[name]]] for r in rows]))
"""
    expected = []
    for k in range(4):
        ids, n = ids_of(k).tolist(), n_images.get(k, 0)
        pictures = [make_image(k * 10 + j).data.hex() for j in range(n)]
        expected.append([f"{k:08d}", ids[:2] + [PLACEHOLDER] * n + ids[2:], pictures])
    found = run(code, tmp_path / "shard-00000.tar", tmp_path / "cache")
    assert eval_json(found) == expected


def eval_json(text: str) -> object:
    return json.loads(text.strip().splitlines()[-1])
