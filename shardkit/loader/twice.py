"""Is a trainer about to share out again what is shared out already? If so, refuse."""

from __future__ import annotations

import sys
from types import FrameType

from shardkit.errors import UsageError

_SHARERS = {
    ("accelerate.data_loader", "DataLoaderDispatcher"): (
        "accelerate would deal out what rank 0 reads: the samples of the other ranks would never "
        "be trained on"
    ),
    ("accelerate.data_loader", "IterableDatasetShard"): (
        "accelerate would share out this rank's samples once more: most of them would be dropped"
    ),
    ("transformers.trainer_pt_utils", "IterableDatasetShard"): (
        "Trainer would share out this rank's samples once more: most of them would be dropped"
    ),
    ("torch.utils.data.distributed", "DistributedSampler"): (
        "a DistributedSampler (deepspeed.initialize(training_data=...) makes one) cannot be put "
        "over samples that are shared out already"
    ),
}
"""(module, class) of those who would → what would happen."""
_NEEDS_RANKS = "accelerate.data_loader", "transformers.trainer_pt_utils"
"""On one rank these do no harm."""
_FIX = (
    "Iterate over a ShardLoader as it is, without accelerator.prepare() or training_data=; in a "
    "Trainer put ShardTrainerMixin before it (docs/how-to/trainer.md)."
)


def refuse_second_sharing(world_size: int) -> None:
    """Raise UsageError when one of those who share out samples is calling, however indirectly.

    None of them asks the dataset, and none warns: what gives them away is the call stack, also in
    a forked worker, which keeps its parent's.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        problem = _SHARERS.get((module, frame.f_code.co_qualname.partition(".")[0]))
        if problem is not None and (world_size > 1 or module not in _NEEDS_RANKS):
            raise UsageError(problem, found=f"{world_size} ranks", fix=_FIX)
        frame = frame.f_back
