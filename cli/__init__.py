"""The shardkit command."""
