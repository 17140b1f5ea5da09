"""How an epoch is ordered: arithmetic only (docs/format.md, section 8). No file is read here.

Read `permute` (a shuffle without a table), `epoch` (lanes, ranks, steps), `state` (what a
checkpoint keeps), then the other orders: `mixture`, `by_length`, and `balanced` with `cost`. Each
says for a position which sample it is, and for a sample at which position it comes (as
`shardkit trace` asks).
"""
