"""How an epoch is ordered: arithmetic only (docs/format.md, section 8). No file is read here.

Read `permute` (a shuffle without a table), `epoch` (lanes, ranks, steps), then the other orders:
`mixture`, `by_length`, and `balanced` with `cost`. Each says for a position which sample it is, and
for a sample at which position it comes (as `shardkit trace` asks). `arrangement` chooses among
them, a new one goes there too; `state` is what a checkpoint keeps.
"""
