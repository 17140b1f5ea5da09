"""A process for tests of the cache: what it does is its first argument."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from shardkit.dataset import open_dataset


def main(what: str, url: str, cache: str, options: dict[str, Any]) -> None:
    dataset = open_dataset(url, cache_dir=cache, storage_options=options)
    copy = dataset.fetch(0)
    print(copy.path, flush=True)
    if what == "hold":
        time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
