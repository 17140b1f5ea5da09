"""Checks: are the shards whole, and do they mean what they should?

`verify` asks in turn `shards` (every byte of one shard, with `stored_tokens` and
`stored_pictures`), `accounted_rows` (every row of the input is kept once or rejected once) and,
given the source, `retokenise` (are these the tokens that the source gives now?). `expected` says
what a shard should be; what is found is a `Finding` (`findings`) with its place and what to do.
Nothing is written.
"""

from shardkit.check.findings import Finding, Findings
from shardkit.check.verify import verify

__all__ = ["Finding", "Findings", "verify"]
