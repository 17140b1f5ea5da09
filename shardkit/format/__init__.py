"""What is on disk: tar shards, their index, the manifest. docs/format.md is the specification.

    Samples ──render──► tar bytes ──codec──► shard file      (writer, rolling)
    shard file ──codec──► tar bytes ──footer──► index ──► tokens, images of sample i      (shard)

Read `layout` (names and numbers), `samples`, `tar`, `index`, `render`, `codec`, `footer` and
`places`, then `writer`, `rolling` and `shard`, which use them; `manifest`, `identity`, `recipe`,
`builds` and `relations` are about the dataset as a whole, `differing` says where two recipes part.
`canonical` (one byte string a JSON value), `atomic` and `mapped` are tools.
"""
