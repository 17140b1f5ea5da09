"""A dataset to look through in a browser, on this machine only: `shardkit view`.

`serve` opens the loopback address that `guard` protects, `app` turns an address into data and a
template; `library`, `find`, `sources` and `rejects` are the data.
"""
