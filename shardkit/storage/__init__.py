"""Where files come from: a local folder, or any URL that fsspec knows, through a cache.

`store` is what a dataset asks for files, `open` chooses one for a path or URL; `remote` fetches
with `retry`, into the `cache` that all processes of a node share: `cache_folder` says where it is,
`locked_copy` keeps a file in it while somebody reads it, `fetch_progress` tells who wants to know.
`single` is for files that no manifest describes, `hub` asks for models by name; `urls` hides what
may not be printed.
"""
