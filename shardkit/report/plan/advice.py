"""What follows from the figures of a plan, in words."""

from __future__ import annotations

from collections.abc import Sequence

from shardkit.report.plan.what import FEWEST_STEPS, WORTH_IT, PlannedRun, PlanOptions

MUCH_PADDING = 0.2
"""The share of padding from which packing is advised."""


def advice_on(runs: Sequence[PlannedRun], options: PlanOptions, *, is_local: bool) -> list[str]:
    """What to change: one sentence each."""
    found = []
    gains = [run for run in runs if run.gain >= WORTH_IT and run.best is not None]
    if gains:
        best = max(gains, key=lambda run: run.gain)
        scope, factor = best.best or ("", 1.0)
        usual = "group" if is_local else "lanes"
        name = "" if scope == usual else f', balance_scope="{scope}"'
        found.append(
            f'ShardLoader(..., balance="cost"{name}): on {best.world_size:,} ranks of '
            f"{best.batch_size} the slowest would cost {factor:.2f} times the mean instead of "
            f"{best.straggler:.2f}, so that steps are up to {100 * best.gain:.0f} % shorter."
        )
        if not is_local and scope != "lanes":
            found.append(
                f'The scope "{scope}" lets every node fetch nearly all shards of the URL: '
                '"lanes" does not.'
            )
    elif any(run.stragglers for run in runs) and not options.balance:
        found.append('balance="cost" would change little: the steps are of like cost already.')
    padded = [run for run in runs if run.padding >= MUCH_PADDING]
    if padded:
        worst = max(padded, key=lambda run: run.padding)
        found.append(
            f"{100 * worst.padding:.0f} % of the places of a batch of {worst.batch_size} are "
            "padding: --packing best-fit has next to none, group_by_length less."
        )
    if any(run.n_steps == 0 for run in runs):
        found.append("A run without steps has fewer rows than one global batch.")
    return found


def notes_on(
    runs: Sequence[PlannedRun], options: PlanOptions, *, n_read: int, n_shards: int
) -> list[str]:
    """What a reader of the figures should know: one sentence each."""
    found = []
    if n_read < n_shards:
        found.append(
            f"The indexes of {n_read:,} of {n_shards:,} shards were read; the others are taken to "
            "be like them."
        )
    part = [run for run in runs if run.n_steps is None or run.n_simulated < run.n_steps]
    if part:
        found.append(
            f"Of {len(part):,} of the runs some groups of steps were looked at, evenly spread, "
            f"{min(run.n_simulated for run in part):,} steps or more."
        )
    if any(run.n_simulated < FEWEST_STEPS for run in runs):
        found.append(f"Slowest / mean is said from {FEWEST_STEPS} steps on: below it is chance.")
    if any(run.pixel_bytes is None for run in runs):
        found.append("The memory of pictures is not counted: their size is the model's.")
    if (
        any(run.max_length is not None for run in runs)
        and len({(run.max_length, run.packing) for run in runs}) > 1
    ):
        found.append(
            "Rows of another length or packing are laid out from lengths: shardkit repack makes "
            "about these."
        )
    token, square, image = options.weights
    found.append(
        f"Cost of a row: {token:,} a token, {square:,} a squared token of a document, {image:,} an "
        "image token; padding costs nothing in it."
    )
    return found
