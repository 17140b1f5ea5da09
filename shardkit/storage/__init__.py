"""Where files come from: a local folder, or any URL that fsspec knows, through a cache."""
