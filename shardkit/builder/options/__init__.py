"""Everything that the user can say about a pack: each option is one field, and stands nowhere else.

A field's annotation holds its type and range, how the command line shows it (`Flag`), and where
the manifest keeps it (`Kept`): identity, `PackOptions.of` ("the same options again") and the
command's options all come from there. To add an option, add a field to the group it belongs to
(and its line in arguments.py, which only type checkers read; a test compares the two).

    kept ► rows ► tokens ► images ► pack          each class adds its group to the one before
    values (texts of the command)  conflicts      what cannot be said together
"""

from shardkit.builder.options.kept import IMAGES, ROWS, RUNNING, TOKENS
from shardkit.builder.options.pack import (
    PART_BYTES,
    PART_ROWS,
    PART_ROWS_WITH_IMAGES,
    PackOptions,
    of_dataset,
)
from shardkit.builder.options.rows import SHARD_SIZE, AppendOptions, Compression, MaxRejects
from shardkit.builder.options.tokens import PACKINGS

__all__ = [
    "IMAGES",
    "PACKINGS",
    "PART_BYTES",
    "PART_ROWS",
    "PART_ROWS_WITH_IMAGES",
    "ROWS",
    "RUNNING",
    "SHARD_SIZE",
    "TOKENS",
    "AppendOptions",
    "Compression",
    "MaxRejects",
    "PackOptions",
    "of_dataset",
]
