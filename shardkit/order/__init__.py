"""How an epoch is ordered: arithmetic only (docs/format.md, section 8)."""
