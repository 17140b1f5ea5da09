"""The tokenizer that lies in a dataset, for showing its ids as text: offline and without labels."""

from __future__ import annotations

import tokenizers

from shardkit.dataset import Dataset
from shardkit.errors import TokenizerError


def stored_tokenizer(dataset: Dataset) -> tokenizers.Tokenizer | None:
    """The dataset's tokenizer; None where there is none. Raises TokenizerError for a bad file."""
    path = dataset.tokenizer_folder() / "tokenizer.json"
    if not path.exists():
        return None
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise TokenizerError(
            f"the tokenizer of the dataset cannot be read: {error}",
            where=str(path),
            fix="Give this user the right to read it, or copy it back; `shardkit verify` tells.",
        ) from error
