"""The fault campaign: damage shardkit's files and runs in every way we know, and count what comes.

    __main__ ► supervise ► (a child process for each kind) ► case ► one module of a kind
                   │                                                      │
                 report: one table, a reproducer for every fault        Verdict

A kind is a function of `(room, chance, number)` that does one fault and says what came of it. It
draws everything from `chance`, so that seed, kind and case number are enough to do it again. To
add a kind: a module here, and a line in `kinds.CAMPAIGNS`. Read in this order: `verdict`, `room`,
`flips`, `kinds`, `case`, `supervise`.

Run by `make campaign [SECONDS=600] [SEED=1] [ONLY=KIND [CASE=N]]`; a short slice of it is
tests/test_campaign.py.
"""
