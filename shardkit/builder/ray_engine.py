"""Parts built by Ray tasks, on this machine or on a running cluster."""

from __future__ import annotations

import importlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from shardkit.builder.job import BuildEngine, EngineOptions, Job, explained
from shardkit.builder.options import RUNNING
from shardkit.builder.part import PartBuilder
from shardkit.builder.plan import Plan
from shardkit.builder.receipt import Receipt
from shardkit.errors import BuildFailed, MissingPackage
from shardkit.options import Flag

_RETRIES = 3
_STORE_BYTES = 256 << 20
"""Bytes of a local cluster's object store, which holds the plan and little else."""

_builders: dict[tuple[str, str, Path], PartBuilder] = {}
"""The last builder of a Ray worker process, so that the encoder is loaded once."""


class RayOptions(EngineOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which cluster."""

    ray_address: Annotated[
        str | None, Flag("of a running cluster, or `auto`", "ADDRESS", RUNNING)
    ] = None
    """The address of a running cluster; None: one is started here, and ended with the build."""


def run_ray(job: Job) -> Iterator[Receipt]:
    """Build the parts as Ray tasks; a task whose process dies is run again, up to three times.

    `ray_address`: of a running cluster (its nodes must see the output folder and the inputs
    under the same paths, and have shardkit installed); None starts a local one with `job.workers`
    processes, which ends with the build.
    """
    ray = _ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        _connect(ray, job)
    running: dict[Any, int] = {}
    try:
        yield from _results(ray, job, running)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if is_ours:
            ray.shutdown()


def _connect(ray: Any, job: Job) -> None:
    address = getattr(job.options, "ray_address", None)
    where = f"--ray-address {address}" if address else None
    options: dict[str, Any] = {"address": address}
    if address is None:
        options = {"address": "local", "num_cpus": job.workers, "include_dashboard": False}
        options["object_store_memory"] = _STORE_BYTES
    try:
        _knock(address)
        ray.init(log_to_driver=False, configure_logging=False, **options)
    except (OSError, ValueError, RuntimeError) as err:
        raise BuildFailed(
            f"Ray does not start or answer: {err}",
            where=where,
            fix="Check the address with `ray status`, or leave --ray-address out for a local one.",
        ) from err


def _knock(address: str | None) -> None:
    """Raise OSError when nobody listens at HOST:PORT; Ray would try for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _results(ray: Any, job: Job, running: dict[Any, int]) -> Iterator[Receipt]:
    task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_build)
    shared = ray.put(job.plan)
    folder = job.folder.resolve()
    running |= {task.remote(shared, folder, part): part for part in job.parts}
    while running:
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            part = running.pop(reference)
            with explained(part, job.plan):
                receipt = _get(ray, reference, part)
            job.on_rows(receipt.n_rows, receipt.n_tokens)
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
    key = (plan.key, plan.options.engine, folder)
    if key not in _builders:
        _builders.clear()
        _builders[key] = PartBuilder(plan, folder)
    return _builders[key].build(part)


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as err:
        raise MissingPackage(
            "building on Ray needs ray", fix='pip install "shardkit[ray]", or leave --engine local'
        ) from err


RAY = BuildEngine(run_ray, options=RayOptions)
