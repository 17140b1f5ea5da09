"""P3: what was packed for another run is refused, naming both values, before the first batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from shared import shared
from synthetic import make_dataset, make_recipe

from shardkit.errors import IdentityMismatch, ShardkitError, StateMismatch, UnsupportedVersion
from shardkit.loader import ShardDataset, ShardLoader, ShardTable
from shardkit.tokens import load_template, load_tokenizer

TOKENIZER = Path(__file__).parents[1] / "data" / "tokenizer"
Opener = Callable[..., object]


def open_loader(path: Path, **expected: Any) -> object:
    """A loader with batches of two."""
    return ShardLoader(path, 2, **expected)


OPENERS: list[Opener] = [ShardDataset, open_loader, ShardTable]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples that say that they were packed with our small tokenizer and qwen_chat."""
    tokenizer = load_tokenizer(TOKENIZER)
    path = tmp_path_factory.mktemp("packed")
    recipe = make_recipe(
        images=True,
        tokenizer=tokenizer.identity.to_json(),
        template=load_template("qwen_chat", tokenizer).identity,
        max_length=2048,
    )
    make_dataset(path, [3], recipe=recipe)
    return path


@pytest.mark.parametrize("opener", OPENERS)
def test_what_fits_is_taken(dataset: Path, opener: Opener) -> None:
    """The same tokenizer, by path or loaded, template, length and images are no reason to refuse;
    neither is another name of the same template text."""
    opener(dataset)
    opener(dataset, tokenizer=TOKENIZER, template="qwen_chat", max_length=2048)
    tokenizer = load_tokenizer(TOKENIZER)
    opener(dataset, tokenizer=tokenizer, template=load_template("qwen_chat", tokenizer))
    opener(dataset, tokenizer=str(TOKENIZER), images={"image_tokens": 4})


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize(
    ("expected", "both"),
    [
        ({"max_length": 1024}, ["max_length", "2048", "1024"]),
        ({"template": "vicuna"}, ["template", "qwen_chat", "vicuna"]),
        ({"images": {"image_tokens": 576}}, ["image_tokens", "4", "576"]),
        ({"images": {"image_token": 7}}, ["image_token", "-200", "7"]),
    ],
)
def test_other_settings_are_refused(
    dataset: Path, opener: Opener, expected: dict[str, Any], both: list[str]
) -> None:
    """The error names the setting, what the dataset was packed with, and what was given."""
    with pytest.raises(IdentityMismatch) as caught:
        opener(dataset, **expected)
    assert all(word in str(caught.value) for word in both)
    assert caught.value.fix


@pytest.mark.parametrize("opener", OPENERS)
def test_another_tokenizer_is_refused(dataset: Path, opener: Opener) -> None:
    """A different vocabulary: both sizes are named."""
    words = {word: i for i, word in enumerate(["a", "b", "c"])}
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    with pytest.raises(IdentityMismatch, match="vocabulary size: packed with 2048, given 3"):
        opener(dataset, tokenizer=other)


def test_one_added_token_is_refused(dataset: Path) -> None:
    """The same tokenizer with one token more: what differs is named."""
    other = tokenizers.Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    other.add_special_tokens(["<|new|>"])
    with pytest.raises(IdentityMismatch, match="added tokens"):
        ShardLoader(dataset, 2, tokenizer=other)


@pytest.mark.needs_shared
def test_a_tokenizer_of_the_field_is_refused(dataset: Path) -> None:
    """A real tokenizer instead of the one that the dataset was packed with."""
    folders = sorted(shared("data/tokenizers").iterdir())
    with pytest.raises(IdentityMismatch, match="packed with another tokenizer"):
        ShardLoader(dataset, 2, tokenizer=folders[0])


def test_a_template_with_edited_text_is_refused(tmp_path: Path) -> None:
    """The name alone is not trusted: a template of that name with another text differs."""
    make_dataset(tmp_path, [3])
    with pytest.raises(IdentityMismatch, match="template"):
        ShardLoader(tmp_path, 2, template="qwen_chat")


def test_another_major_version_is_refused(tmp_path: Path) -> None:
    """A dataset of format 2 is refused, naming both versions."""
    make_dataset(tmp_path, [3])
    manifest = tmp_path / "manifest.json"
    text = manifest.read_bytes()
    manifest.write_bytes(text.replace(b'"version": "1.0"', b'"version": "2.0"'))
    for opener in OPENERS:
        with pytest.raises(UnsupportedVersion, match=r"1\.x.*2\.0"):
            opener(tmp_path)


def test_a_state_of_another_dataset_is_refused(dataset: Path, tmp_path: Path) -> None:
    """Before the first batch, naming both fingerprints."""
    make_dataset(tmp_path, [3])
    other = ShardLoader(tmp_path, 2)
    loader = ShardLoader(dataset, 2)
    with pytest.raises(StateMismatch) as caught:
        loader.load_state_dict(other.state_dict())
    assert loader.dataset.fingerprint in str(caught.value)
    assert other.dataset.fingerprint in str(caught.value)


def test_no_dataset_is_an_error_of_ours(tmp_path: Path) -> None:
    """A folder without a manifest says what to give instead."""
    with pytest.raises(ShardkitError, match=r"no manifest\.json"):
        ShardLoader(tmp_path, 2)
