"""Checks: are the shards whole, and do they mean what they should?"""

from shardkit.check.findings import Finding, Findings
from shardkit.check.verify import verify

__all__ = ["Finding", "Findings", "verify"]
