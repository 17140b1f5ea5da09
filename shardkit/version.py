"""The version of the package, of its shard format and of its epoch order."""

__version__ = "0.1.0"
