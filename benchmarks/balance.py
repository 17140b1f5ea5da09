"""How much longer the slowest rank of a step takes than the mean, with and without balance="cost".

    python benchmarks/balance.py DATASET [--ranks 8 64] [--rows 1 4] [--model 24576,1,0]
    python benchmarks/balance.py DATASET --measure [--steps 60] [--hidden 128] [--repeats 2]

The first form is the plan, from the index alone: the straggler factor is the sum over the steps of
an epoch of the dearest rank's cost, over the sum of the means; left out below 20 steps.

--measure trains a small Llama under DistributedDataParallel (gloo) in 2 processes, whole epochs of
some steps in a random order and balanced by turns, with the cost model of that very model. A step
costs a rank the CPU time of its thread in forward and backward: waiting for the other rank and
what other programs do on the machine is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from shardkit import ShardLoader
from shardkit.dataset import open_dataset
from shardkit.order.cost import weights_of
from shardkit.report.plan import PlanOptions, Varied, make_plan

SCOPES = ("random", "lanes", "group", "step")
N_RANKS = 2


def planned(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The straggler factors of the plan."""
    weights = weights_of([int(one) for one in args.model.split(",")] if args.model else None)
    varied = Varied(tuple(args.ranks), tuple(args.rows))
    plan = make_plan(open_dataset(args.dataset), varied, PlanOptions(seed=1, weights=weights))
    return [
        {"ranks": run.world_size, "rows": run.batch_size, "steps": run.n_steps, **run.stragglers}
        for run in plan.runs
    ]


def model_of(vocab_size: int, hidden: int) -> LlamaForCausalLM:
    """A small Llama of two layers, the same on every rank."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1 << 16,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def costs_of_steps(loader: ShardLoader, model: Any, n: int) -> list[float]:
    """CPU seconds of this thread in forward and backward, of the first n steps of an epoch."""
    found = []
    for _, batch in zip(range(n), loader, strict=False):
        inputs = loader.model_inputs(batch)
        began = time.thread_time()
        loss = model(**inputs).loss
        loss.backward()
        found.append(time.thread_time() - began)
        model.zero_grad(set_to_none=True)
    return found


def rank_main(args: argparse.Namespace) -> None:
    """One of the two processes: both orders by turns, then the factors of all steps."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    manifest = open_dataset(args.dataset).manifest
    plain = model_of(manifest.recipe["tokenizer"]["vocab_size"], args.hidden)
    model = DistributedDataParallel(plain)
    rows = args.rows[0]
    orders: dict[str, dict[str, Any]] = {
        "random": {},
        "balanced": {"balance": "cost", "cost_model": plain.config},
    }
    found: dict[str, list[list[float]]] = {name: [] for name in orders}
    for epoch in range(args.repeats):
        for name, options in orders.items():
            loader = ShardLoader(args.dataset, rows, seed=1, epoch=epoch, prefetch=0, **options)
            mine = torch.tensor(costs_of_steps(loader, model, args.steps), dtype=torch.float64)
            both = [torch.zeros_like(mine) for _ in range(N_RANKS)]
            dist.all_gather(both, mine)
            found[name] += torch.stack(both).T.tolist()
    if rank == 0:
        report: dict[str, Any] = {k: factor_of(torch.tensor(v)) for k, v in found.items()}
        print(json.dumps(report | {"steps of each": len(found["random"])}))
    dist.destroy_process_group()


def factor_of(costs: torch.Tensor) -> float:
    """(steps, ranks) CPU seconds: the slowest over the mean."""
    return round(float(costs.max(dim=1).values.sum() / costs.mean(dim=1).sum()), 3)


def measured(arguments: list[str]) -> dict[str, Any]:
    """Run this script in two processes."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29500 + os.getpid() % 2000)}
    processes = []
    for rank in range(N_RANKS):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(N_RANKS)}
        command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--child"]
        env = os.environ | shared | place
        processes.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    texts = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a rank failed")
    found: dict[str, Any] = json.loads(texts[0].splitlines()[-1])
    return found


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 1024])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--model", help="costs of a token, a squared token, an image token")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2, help="epochs of each order")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        rank_main(args)
        return
    if args.measure:
        print(json.dumps(measured(sys.argv[1:])))
        return
    found = planned(args)
    if args.json:
        print(json.dumps(found))
        return
    print("| ranks, rows a rank | steps | random | lanes | group | step |\n|---|" + "--:|" * 5)
    for one in found:
        shown = [f"{one[name]:.2f}" if name in one else "" for name in SCOPES]
        print(f"| {one['ranks']}, {one['rows']} | {one['steps']} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
