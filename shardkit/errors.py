"""Every error that shardkit raises on purpose.

    ShardkitError
    ├── UsageError          options that contradict each other or cannot be used
    ├── MissingPackage      an optional package is needed
    ├── BadInput            a source file, record or image cannot be read
    │   └── TooManyRejects  more rows rejected than --max-rejects
    ├── BadManifest         manifest.json is not what docs/format.md says
    ├── UnsupportedVersion  written by another major version of the format
    ├── CorruptShard        bytes that are not what the manifest or the index says
    │   └── MissingShard    a shard that the manifest names is not there
    ├── IdentityMismatch    another tokenizer, template, max_length, dataset ...
    ├── StateMismatch       a loader state that does not fit this loader
    ├── TokenizerError      a tokenizer that cannot be loaded or used
    ├── ProcessorError      a vision-language processor that cannot be loaded or used
    │   └── PictureRefused  a picture of a size that it does not take
    ├── TemplateError       a template that is unknown or cannot be used
    ├── BuildConflict       the output folder is locked, foreign, or of other inputs
    ├── BuildFailed         a part could not be built (worker killed, disk full)
    └── StorageError        a file could not be read, fetched or stored

An error says where it happened, what was expected and found, and what to do.
One string is enough to build any of them, because torch rebuilds a worker's
error as `type(error)(text)`.
"""

from __future__ import annotations

from typing import Self


class ShardkitError(Exception):
    """Root of all errors that shardkit raises on purpose."""

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.message = message
        self.where = where
        self.expected = expected
        self.found = found
        self.fix = fix
        super().__init__(self.describe())

    def describe(self) -> str:
        """The error as text: where, what, expected and found, and below it what to do."""
        text = self.message_line()
        text = f"{self.where}: {text}" if self.where else text
        return f"{text}\n  {self.fix}" if self.fix else text

    def message_line(self) -> str:
        """What happened, with expected and found, in one line."""
        values = [("expected", self.expected), ("found", self.found)]
        given = ", ".join(f"{name} {value}" for name, value in values if value is not None)
        return f"{self.message} ({given})" if given else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), dict(self.__dict__)))

    @classmethod
    def from_fields(cls, fields: dict[str, str | None]) -> Self:
        """The error again from its fields (errors cross process borders)."""
        return cls(
            fields["message"] or "",
            where=fields.get("where"),
            expected=fields.get("expected"),
            found=fields.get("found"),
            fix=fields.get("fix"),
        )


def _rebuild(cls: type[ShardkitError], fields: dict[str, str | None]) -> ShardkitError:
    return cls.from_fields(fields)


class UsageError(ShardkitError):
    """Options that contradict each other or cannot be used; exit status 2."""


class MissingPackage(ShardkitError):
    """An optional package is needed for what was asked."""


class BadInput(ShardkitError):
    """A source file, a record or an image cannot be read."""


class TooManyRejects(BadInput):
    """More rows were rejected than the limit allows."""


class BadManifest(ShardkitError):
    """manifest.json is not what docs/format.md says."""


class UnsupportedVersion(ShardkitError):
    """Written by another major version of the format."""


class CorruptShard(ShardkitError):
    """Bytes that are not what the manifest or the index says."""


class MissingShard(CorruptShard):
    """A shard that the manifest names is not there."""


class IdentityMismatch(ShardkitError):
    """Another tokenizer, template, max_length or dataset than the one expected."""


class StateMismatch(ShardkitError):
    """A loader state that does not fit this loader."""


class TokenizerError(ShardkitError):
    """A tokenizer that cannot be loaded or used."""


class ProcessorError(ShardkitError):
    """A vision-language processor that cannot be loaded or used."""


class PictureRefused(ProcessorError):
    """A picture of a size that the processor does not take, hundreds of times as long as wide."""


class TemplateError(ShardkitError):
    """A template that is unknown or cannot be used."""


class BuildConflict(ShardkitError):
    """The output folder is in use, foreign, or was begun with other inputs or options."""


class BuildFailed(ShardkitError):
    """A part could not be built: a worker was killed, the disk is full."""


class StorageError(ShardkitError):
    """A file could not be read, fetched or stored: rights, a network, a full disk."""
