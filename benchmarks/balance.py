"""How much longer the slowest rank of a step takes than the mean, with and without balance="cost".

    python benchmarks/balance.py DATASET [--ranks 8 64] [--rows 1 4] [--model 24576,1,0]

From the index alone: nothing is trained. The straggler factor is the sum over the steps of an
epoch of the dearest rank's cost, over the sum of the means. Figures are left out where an epoch
has fewer than 20 steps.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from shardkit.dataset import Dataset, open_dataset
from shardkit.loader.batches import IndexFacts
from shardkit.order.balanced import Balance, BalancedOrder, Scope
from shardkit.order.by_length import Order, group_size
from shardkit.order.cost import Weights, weights_of
from shardkit.order.epoch import EpochOrder

SCOPES: tuple[Scope | None, ...] = (None, "lanes", "group", "step")
FEWEST_STEPS = 20


def factor(
    dataset: Dataset, ranks: int, rows: int, scope: Scope | None, weights: Weights
) -> float | None:
    """The straggler factor of an epoch; None when it has too few steps."""
    sizes, step = dataset.manifest.sizes, ranks * rows
    n_steps = int(sizes.sum()) // step
    if n_steps < FEWEST_STEPS:
        return None
    facts = IndexFacts([dataset], weights)
    order: Order = EpochOrder(sizes, 1, 0, lanes=ranks, chunk=rows, shuffle="full")
    if scope is not None:
        order = BalancedOrder(
            order,
            facts.costs,
            Balance(scope, step, rows, weights),
            group=group_size(int(sizes.sum()), step),
            lanes=ranks,
            chunk=rows,
            seed=1,
            epoch=0,
        )
    places = order.locate(np.arange(n_steps * step, dtype=np.uint64))
    costs = facts.costs(*places).astype(np.float64).reshape(n_steps, ranks, rows).sum(axis=2)
    return float(costs.max(axis=1).sum() / costs.mean(axis=1).sum())


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 1024])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--model", help="costs of a token, a squared token, an image token")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    weights = weights_of([int(one) for one in args.model.split(",")] if args.model else None)
    dataset = open_dataset(args.dataset)
    found = [
        {"ranks": ranks, "rows": rows}
        | {scope or "random": factor(dataset, ranks, rows, scope, weights) for scope in SCOPES}
        for ranks in args.ranks
        for rows in args.rows
    ]
    if args.json:
        print(json.dumps(found))
        return
    print("| ranks, rows a rank | random | lanes | group | step |\n|---|--:|--:|--:|--:|")
    for one in found:
        shown = [
            "" if one[name] is None else f"{one[name]:.3f}"
            for name in ("random", "lanes", "group", "step")
        ]
        print(f"| {one['ranks']}, {one['rows']} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
