"""What a recipe says of the rows that its shards hold (docs/format.md, section 11.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

TOKEN_ROWS = ("input_ids", "labels")
"""The token rows that this version writes; every dataset's rows begin with them."""
NO_PACKING = "none"
Task = Literal["sft", "preference", "kto"]
SFT: Final = "sft"
PREFERENCE: Final = "preference"
"""The task whose rows are two documents: the chosen answer, then the rejected one."""
KTO: Final = "kto"
"""The task whose rows are one answer with a label that says whether it is a good one."""
MULTIPLE = "pad_documents_to_multiple"
"""The field of a recipe with the number that documents are padded to multiples of; absent where
they are not padded."""


@dataclass(frozen=True, slots=True)
class RowRules:
    """How the rows of a dataset are built, as far as reading and writing them needs it."""

    task: str = SFT
    is_packed: bool = False
    """Whether several samples share a row."""
    has_segments: bool = False
    """Whether the documents of a row are listed: of packs, and of preference rows."""
    token_rows: tuple[str, ...] = TOKEN_ROWS
    image_token: int | None = None
    """The id that stands once for an image that the model gives `image_tokens` places; None
    where images are expanded already, and for text."""
    image_tokens: int = 1
    """Places of an image in the model, for each `image_token`."""

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> RowRules:
        """The rules of a recipe; absent fields have their neutral value."""
        is_packed = recipe.get("packing", NO_PACKING) != NO_PACKING
        images = recipe.get("images") or {}
        is_expanded = not images or images.get("processor") is not None
        task = recipe.get("task", SFT)
        return cls(
            task=task,
            is_packed=is_packed,
            has_segments=is_packed or task == PREFERENCE,
            token_rows=tuple(recipe.get("token_rows", TOKEN_ROWS)),
            image_token=None if is_expanded else images.get("image_token"),
            image_tokens=1 if is_expanded else images.get("image_tokens") or 1,
        )


def pad_token_id_of(recipe: Mapping[str, Any]) -> int:
    """The tokenizer's padding id, else its EOS id, else 0."""
    special = recipe.get("tokenizer", {}).get("special_ids", {})
    found = (special.get(name) for name in ("pad", "eos"))
    return next((int(value) for value in found if value is not None), 0)
