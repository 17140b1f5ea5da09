"""shardkit: tokenised tar shards that prove what they are, streamed to every rank by arithmetic."""

from __future__ import annotations
