"""Arguments of short runs under TRL, the same for all of its trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def short_run(kind: Any, folder: Path, **more: Any) -> Any:
    """Arguments of the class `kind`: 4 steps of 2 rows, logged each, saved every second."""
    options = {
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 2,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "max_length": None,
    } | more
    return kind(output_dir=str(folder), **options)
