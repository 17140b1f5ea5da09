"""A dataset that was packed with what the training run uses; any other is refused when opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from shardkit.dataset import Dataset, open_dataset
from shardkit.errors import IdentityMismatch
from shardkit.loader.options import Access, Expected

_REPACK = "Use what the dataset was packed with, or pack the data again."


def open_expected(path: str | Path, expected: Expected, access: Access | None = None) -> Dataset:
    """The dataset at a path or URL, its folder or its manifest.json.

    Raises BadManifest, UnsupportedVersion, StorageError, and IdentityMismatch when it was packed
    with something else than `expected`.
    """
    access = access or Access()
    dataset = open_dataset(
        path,
        storage_options=access.storage_options,
        cache_dir=access.cache_dir,
        cache_limit=access.cache_limit,
    )
    refuse_other(dataset, expected)
    return dataset


def refuse_other(dataset: Dataset, expected: Expected) -> None:
    """Raise IdentityMismatch, naming both values, when the dataset was packed with another
    tokenizer, template, max_length or image setting than `expected`."""
    recipe, where = dataset.manifest.recipe, dataset.root
    if expected.max_length is not None and recipe.get("max_length") != expected.max_length:
        raise _mismatch("max_length", where, recipe.get("max_length"), expected.max_length)
    if expected.images is not None:
        _refuse_images(recipe.get("images") or {}, expected.images, where)
    if expected.tokenizer is not None:
        _refuse_tokenizer(recipe.get("tokenizer"), expected.tokenizer, where)
    if expected.template is not None:
        _refuse_template(recipe.get("template") or {}, expected, dataset)


def _refuse_images(packed: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    for name, value in expected.items():
        if packed.get(name) != value:
            raise _mismatch(f"image setting {name}", where, packed.get(name), value)


def _refuse_tokenizer(packed: object, tokenizer: object, where: str) -> None:
    from shardkit.tokens.identity import TokenizerIdentity, differences
    from shardkit.tokens.load import identity_of

    ours = TokenizerIdentity.from_json(packed, f"{where}: $.identity.recipe.tokenizer")
    theirs = identity_of(tokenizer)
    lines = differences(ours, theirs)
    if lines:
        raise IdentityMismatch(
            "packed with another tokenizer than the one given: " + "; ".join(lines),
            where=where,
            expected=f"the tokenizer {ours.sha256[:12]} that the dataset was packed with",
            found=theirs.sha256[:12],
            fix=_REPACK,
        )


def _refuse_template(packed: Mapping[str, Any], expected: Expected, dataset: Dataset) -> None:
    found = _template_identity(expected, packed, dataset)
    if found["sha256"] != packed.get("sha256"):
        if packed.get("name") == "none":
            raise IdentityMismatch(
                "packed from rows of tokens, without a word on the template that made them",
                where=dataset.root,
                expected="no template",
                found=_described(found),
                fix="Pack the rows again with --template NAME and --max-length N of the run that "
                "made them, or leave template out.",
            )
        raise _mismatch("template", dataset.root, _described(packed), _described(found))


def _template_identity(
    expected: Expected, packed: Mapping[str, Any], dataset: Dataset
) -> Mapping[str, Any]:
    from shardkit.tokens.load import load_tokenizer
    from shardkit.tokens.templates import TEMPLATES, load_template

    given = expected.template
    if not isinstance(given, str | Path):
        identity: Mapping[str, Any] = cast(Any, given).identity
        return identity
    if str(given) in TEMPLATES:
        return TEMPLATES[str(given)].identity
    if str(given) == packed.get("name") == "tokenizer" and expected.tokenizer is None:
        return packed
    ours = expected.tokenizer or dataset.tokenizer_folder()
    date = packed.get("date")
    args = packed.get("args")
    return load_template(given, load_tokenizer(ours), date=date, args=args).identity


def _described(identity: Mapping[str, Any]) -> str:
    return f"{identity.get('name')} ({str(identity.get('sha256'))[:12]})"


def _mismatch(what: str, where: str, packed: object, given: object) -> IdentityMismatch:
    return IdentityMismatch(
        f"packed with another {what} than the one given",
        where=where,
        expected=f"{packed}, as the dataset was packed",
        found=str(given),
        fix=_REPACK,
    )
