"""--pad-documents-to-multiple: every document of a pack, and nothing else of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import alpaca_rows, pack_small, write_json, write_llava

from shardkit import ShardLoader, ShardMixture, ShardTable
from shardkit.builder import repack
from shardkit.check import verify
from shardkit.dataset import load_manifest, open_dataset
from shardkit.errors import BuildConflict, IdentityMismatch, UsageError

MULTIPLE = 8
Document = tuple[int, int, int, tuple[int, ...], tuple[int, ...]]


def documents(path: Path) -> list[tuple[Document, tuple[int, ...], tuple[int, ...]]]:
    """Of each document: whose it is, its own tokens and labels, then the padding's."""
    dataset = open_dataset(path)
    pad = dataset.manifest.pad_token_id
    multiple = dataset.manifest.recipe.get("pad_documents_to_multiple", 1)
    found = []
    for number in range(len(dataset.manifest.shards)):
        shard = dataset.open_shard(number)
        for i in range(shard.n_samples):
            ids, labels = shard.tokens(i)[:2]
            for one in shard.segments_of(i):
                part = slice(int(one["start"]), int(one["start"] + one["length"]))
                n, last = int(one["length"]), int(one["length"])
                while multiple > 1 and last > n - multiple and ids[part][last - 1] == pad:
                    last -= 1
                who = (int(one["source"]), int(one["record"]), int(one["first"]))
                own = tuple(ids[part][:last].tolist()), tuple(labels[part][:last].tolist())
                rest = ids[part][last:].tolist(), labels[part][last:].tolist()
                found.append(((*who, *own), tuple(rest[0]), tuple(rest[1])))
    return sorted(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("padded")
    source = write_json(folder / "rows.json", alpaca_rows(120))
    for packing in ("none", "concat", "best-fit"):
        pack_small(source, folder / packing, packing=packing)
    for packing in ("concat", "best-fit"):
        more: dict[str, Any] = {"packing": packing, "pad_documents_to_multiple": MULTIPLE}
        pack_small(source, folder / f"{packing}-padded", **more)
    return folder


@pytest.mark.parametrize("packing", ["concat", "best-fit"])
def test_every_document_is_a_multiple(folder: Path, packing: str) -> None:
    """The samples are those of an unpadded pack; behind each stands padding without labels."""
    padded = documents(folder / f"{packing}-padded")
    pad = load_manifest(folder / "none").pad_token_id
    for _, ids, labels in padded:
        assert set(ids) <= {pad}
        assert set(labels) <= {-100}
    whole: dict[tuple[int, int], list[int]] = {}
    for (source, record, _, ids, _), _, _ in sorted(padded):
        whole.setdefault((source, record), []).extend(ids)
    expected = {(d[0], d[1]): [*d[3]] for d in _rows(folder / "none")}
    assert whole == expected
    manifest = load_manifest(folder / f"{packing}-padded")
    assert manifest.recipe["pad_documents_to_multiple"] == MULTIPLE
    assert manifest.fingerprint != load_manifest(folder / packing).fingerprint
    assert not verify(folder / f"{packing}-padded", sources=[folder / "rows.json"]).findings
    for batch in ShardLoader(folder / f"{packing}-padded", 2, drop_last=False):
        assert (np.diff(batch["cu_seqlens"].numpy()) % MULTIPLE == 0).all()


def _rows(path: Path) -> list[Document]:
    table = ShardTable(path)
    index = np.concatenate([table.member.index(n) for n in range(len(table.member.sizes))])
    return [
        (int(one["source"]), int(one["record"]), 0, tuple(row["input_ids"].tolist()), ())
        for one, row in zip(index, table, strict=True)
    ]


@pytest.mark.parametrize("packing", ["concat", "best-fit"])
@pytest.mark.parametrize("start", ["none", "concat"])
def test_repack_makes_the_same_documents(
    folder: Path, tmp_path: Path, packing: str, start: str
) -> None:
    """From rows, and from packs of another rule; what is padded is not repacked again."""
    out = tmp_path / "out"
    repack(
        folder / start, out, packing=packing, pad_documents_to_multiple=MULTIPLE,
    )  # fmt: skip
    assert not verify(out).findings
    if packing == "best-fit":
        assert documents(out) == documents(folder / "best-fit-padded")
    with pytest.raises(BuildConflict, match="documents are padded"):
        repack(out, tmp_path / "again", packing="best-fit")


def test_images_move_with_their_documents(tmp_path: Path) -> None:
    """A picture counts the tokens that it has in the model; concat with pictures is refused."""
    source = write_llava(tmp_path, 24)
    options: dict[str, Any] = {"image_root": tmp_path / "images", "image_tokens": 4}
    options |= {"pad_documents_to_multiple": 4}
    pack_small(source, tmp_path / "out", packing="best-fit", **options)
    assert not verify(tmp_path / "out", sources=[source]).findings
    loader = ShardLoader(
        tmp_path / "out", 2, expand_image_tokens=4, image_token_id=7, drop_last=False
    )
    for batch in loader:
        assert (np.diff(batch["cu_seqlens"].numpy()) % 4 == 0).all()
        assert int((batch["input_ids"] == 7).sum()) == 4 * len(batch.get("images", ()))
    with pytest.raises(UsageError, match="concat ends a pack before a picture"):
        pack_small(source, tmp_path / "other", packing="concat", **options)


def test_what_cannot_be_padded_is_refused(folder: Path, tmp_path: Path) -> None:
    """Rows that are no packs, a length that is no multiple, a mixture of both kinds."""
    source = folder / "rows.json"
    with pytest.raises(UsageError, match="documents of packs"):
        pack_small(source, tmp_path / "a", pad_documents_to_multiple=4)
    with pytest.raises(UsageError, match="do not fill a pack") as caught:
        pack_small(source, tmp_path / "b", packing="concat", pad_documents_to_multiple=7)
    assert "--max-length 63" in str(caught.value)
    with pytest.raises(UsageError, match="documents of packs"):
        repack(folder / "none", tmp_path / "c", pad_documents_to_multiple=4)
    with pytest.raises(IdentityMismatch, match="multiple that documents are padded to"):
        ShardMixture({folder / "best-fit": 1, folder / "best-fit-padded": 1})
