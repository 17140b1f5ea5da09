"""Parts built by Ray tasks, on this machine or on a running cluster."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shardkit.builder.engines import OnRows, explained
from shardkit.builder.part import PartBuilder, Receipt
from shardkit.builder.plan import Plan
from shardkit.errors import BuildFailed, MissingPackage

_RETRIES = 3

_builders: dict[str, PartBuilder] = {}
"""Builders of a Ray worker process, by fingerprint: the encoder is loaded once."""


def run_ray(
    plan: Plan,
    folder: Path,
    parts: Sequence[int],
    workers: int,
    on_rows: OnRows | None,
    address: str | None,
) -> Iterator[Receipt]:
    """Build the parts as Ray tasks; a task whose process dies is run again, up to three times.

    `address`: of a running cluster (its nodes must see the output folder and the inputs under the
    same paths); None starts a local one with `workers` processes, which ends with the build.
    """
    ray = _ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        local = {"num_cpus": workers, "include_dashboard": False} if address is None else {}
        ray.init(address=address, log_to_driver=False, configure_logging=False, **local)
    try:
        yield from _results(ray, plan, folder.resolve(), parts, on_rows)
    finally:
        if is_ours:
            ray.shutdown()


def _results(
    ray: Any, plan: Plan, folder: Path, parts: Sequence[int], on_rows: OnRows | None
) -> Iterator[Receipt]:
    task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_build)
    shared = ray.put(plan)
    running = {task.remote(shared, folder, part): part for part in parts}
    while running:
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            part = running.pop(reference)
            with explained(part, plan):
                receipt = _get(ray, reference, part)
            if on_rows:
                on_rows(receipt.n_rows, sum(entry.n_tokens for entry in receipt.shards))
            yield receipt


def _get(ray: Any, reference: Any, part: int) -> Receipt:
    try:
        receipt: Receipt = ray.get(reference)
    except ray.exceptions.RayTaskError as err:
        raise err.cause from err
    except ray.exceptions.RayError as err:
        raise BuildFailed(
            f"the Ray task died {_RETRIES + 1} times: {type(err).__name__}",
            where=f"part {part}",
            fix="Look at the worker's memory; then run the same command again: it continues.",
        ) from err
    return receipt


def _build(plan: Plan, folder: Path, part: int) -> Receipt:
    builder = _builders.get(plan.fingerprint)
    if builder is None:
        builder = _builders[plan.fingerprint] = PartBuilder(plan, folder)
    return builder.build(part)


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as err:
        raise MissingPackage(
            "building on Ray needs ray", fix='pip install "shardkit[ray]", or leave --engine local'
        ) from err
