"""A fast tokenizer engine that turns out wrong in the middle of a pack leaves no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from records import TOKENIZER, alpaca_rows, digests, pack_small, write_json

from shardkit import load_manifest, pack
from shardkit.builder.merge import merge
from shardkit.errors import BuildFailed
from shardkit.tokens.tokenizer import Tokenizer
from shardkit.tokens.tokenizer_engines import ENGINES, Encode, Flat

N_ROWS = 1400


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_json(tmp_path / "rows.json", alpaca_rows(N_ROWS, n_bad=3))


@pytest.fixture
def _wrong_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is right on the probe text and the first rows, and wrong from row 100 on.

    Of two texts a row, the 1,024th is the first of those that is compared.
    """

    def make(tokenizer: Tokenizer) -> tuple[str, Encode]:
        right = ENGINES["hf"].make(tokenizer)

        def encode(texts: list[str]) -> Flat:
            ids, starts = right(texts)
            ids = ids.copy()
            for i, text in enumerate(texts):
                number = text.partition("Task ")[2].partition(":")[0]
                if number and int(number) >= 100:
                    ids[starts[i]] = 5
            return ids, starts

        return "fastokens", encode

    monkeypatch.setattr("shardkit.tokens.tokenizer_engines._fastest", make)


def _shards(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in digests(folder).items() if name.startswith("shard-")}


@pytest.mark.usefixtures("_wrong_later")
def test_parts_made_before_the_difference_was_found_are_made_again(
    source: Path, tmp_path: Path
) -> None:
    """The shards are those of `tokenizers`, and the manifest says what happened."""
    expected = pack_small(source, tmp_path / "hf", engine="hf", part_rows=40)

    found = pack_small(source, tmp_path / "auto", engine="auto", part_rows=40)

    assert _shards(tmp_path / "auto") == _shards(tmp_path / "hf")
    assert expected.engine == "hf"
    assert found.engine.startswith("hf (fastokens differs from tokenizers on ")
    assert found.fingerprint == expected.fingerprint
    assert load_manifest(tmp_path / "auto") == found


@pytest.mark.usefixtures("_wrong_later")
def test_shares_of_a_wrong_engine_are_not_merged(source: Path, tmp_path: Path) -> None:
    """Where separate tasks built the parts, and only one of them was large enough to find the
    difference, merge names it and the way out."""
    pack_small(source, tmp_path / "hf", engine="hf", part_rows=40)
    out = tmp_path / "auto"
    for share in ((1, 2), (2, 4), (4, 4)):
        recipe: Any = {"tokenizer": TOKENIZER, "template": "qwen_chat", "max_length": 64}
        assert pack(source, out, part_rows=40, part=share, **recipe) is None
    with pytest.raises(BuildFailed, match="found wrong") as caught:
        merge(out)
    assert "--tokenizer-engine hf" in (caught.value.fix or "")

    pack_small(source, out, part_rows=40, engine="hf")

    assert _shards(out) == _shards(tmp_path / "hf")


def test_asked_for_the_reference_nothing_of_a_fast_engine_is_kept(
    source: Path, tmp_path: Path
) -> None:
    """A pack that was begun with a fast engine and is continued with `hf` is all of `hf`."""
    pytest.importorskip("fastokens")
    out = tmp_path / "out"
    recipe: Any = {"tokenizer": TOKENIZER, "template": "qwen_chat", "max_length": 64}
    assert pack(source, out, part_rows=40, part=(1, 9), engine="fastokens", **recipe) is None

    assert pack_small(source, out, part_rows=40, engine="hf").engine == "hf"
