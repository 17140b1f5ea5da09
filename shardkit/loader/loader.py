"""Padded batches of a dataset for one rank, and the state that continues them exactly."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn, Unpack

import torch

from shardkit.dataset import batches_ahead
from shardkit.errors import UsageError
from shardkit.format.recipe import PREFERENCE
from shardkit.loader.batch_maker import BatchMaker
from shardkit.loader.batches import Share, read_batches
from shardkit.loader.collate import Batch
from shardkit.loader.counts import Counts, Step
from shardkit.loader.dataset import ShardDataset
from shardkit.loader.iteration import Iteration, Made, Pinned, Progress, Standing
from shardkit.loader.model_inputs import model_inputs
from shardkit.loader.options import DATASET_PARTS, DatasetOptions, Epoch
from shardkit.loader.pairs import PairLayout
from shardkit.loader.prefetch import Prefetched
from shardkit.loader.stats import Health
from shardkit.loader.workers import WorkerBatches, batches_of_workers
from shardkit.options import FilePath, NonNegative, Positive, check, checked, refuse_unknown
from shardkit.order.arrangement import Arrangement
from shardkit.order.balanced import Balance, Scope
from shardkit.order.by_length import Order, group_size
from shardkit.order.cost import Weights, weights_of
from shardkit.order.epoch import n_steps
from shardkit.order.state import LoaderState

WorkerContext = Literal["fork", "spawn", "forkserver"]


class ShardLoader:
    """Batches of `batch_size` rows for this rank; every rank makes equally many.

    `dataset`: a path, with the options of ShardDataset, or a ShardDataset. Iterate the loader
    once per epoch. Step g of rank r holds the positions from `(g * world_size + r) * batch_size`
    on of the epoch's one sequence (docs/format.md, section 8): nothing is communicated, and the
    order does not depend on `num_workers`. See `make_batch` for what a batch holds; a model that
    is given packed rows must be called with use_cache=False.

    `num_workers=0` reads in a thread, `prefetch` batches ahead (0: no thread; by default 16, or 3
    of packs and of data with pictures). More workers read in processes (`worker_context`: fork,
    spawn or forkserver; None: as torch chooses). `lanes`: how many runs of shards the
    sequence is woven from; by default one for each rank, which then reads only its own shards.
    `group_by_length` makes batches of samples of like length. `balance="cost"` makes the batches
    of all ranks cost the same at each step, by index and arithmetic: `balance_scope` says among
    which samples (`lanes`: each rank's own, `group`: 50 steps of all ranks, `step`: one step;
    `auto`: `group` for local data, `lanes` for remote data), `cost_model` for what model: it, its
    config, or the costs of a token, a squared token and an image token. `sample_keys` adds `keys`,
    SHARD/KEY of each row. `pair_layout`: how pairs of answers stand in a batch, `apart` (default)
    or `stacked`; see `make_pairs`. `stats` keeps the time and bytes of every step in `health`.

    `pin_memory` puts batches into page-locked memory, from which copies to a GPU need not wait
    (`.to(device, non_blocking=True)`). None: where this process uses CUDA already when the
    iteration begins, so that reading never starts CUDA by itself.

    `drop_last=False` (of the dataset) fills the last global batch with rows whose labels are all
    -100 and adds `n_padding_rows` to every batch: a batch may then consist of such rows alone,
    for which a mean loss is not a number, so weigh the loss by the rows that count.

    An iteration begins where the loader stands when its first batch is asked for: at the start of
    an epoch, or where `load_state_dict` put it. When the last batch of an epoch has been handed
    out, the loader stands at the start of the next epoch, and so does its state. A peek or a loop
    inside the loop changes nothing; for evaluation over the same data see `for_eval`.
    """

    @checked
    def __init__(
        self,
        dataset: FilePath | ShardDataset,
        batch_size: Positive,
        *,
        num_workers: NonNegative = 0,
        lanes: Positive | None = None,
        prefetch: NonNegative | None = None,
        pin_memory: bool | None = None,
        sample_keys: bool = False,
        worker_context: WorkerContext | None = None,
        group_by_length: bool = False,
        balance: Literal["cost"] | None = None,
        balance_scope: Literal["auto", "lanes", "group", "step"] = "auto",
        cost_model: object | None = None,
        pair_layout: PairLayout | None = None,
        stats: bool = False,
        **options: Unpack[DatasetOptions],
    ) -> None:
        refuse_unknown(options, ShardLoader.__init__, *DATASET_PARTS)
        _check_balance(balance, balance_scope, cost_model, group_by_length)
        self.dataset = _dataset(dataset, options)
        if pair_layout is not None and self.dataset.task != PREFERENCE:
            raise UsageError(
                "pair_layout is for pairs of answers",
                where=self.dataset.members[0].root,
                found=f"a dataset of the task {self.dataset.task}",
                fix="Leave pair_layout out, or pack with --task preference.",
            )
        self.pair_layout: PairLayout = pair_layout or "apart"
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.worker_context = worker_context
        self.group_by_length = group_by_length
        self._balance = self._chosen_balance(balance, balance_scope, cost_model)
        self.stats = stats
        self.health = Health()
        has_images = any(one.manifest.image_recipe is not None for one in self.dataset.members)
        is_large = has_images or self.dataset.is_packed
        self.prefetch = batches_ahead(is_large=is_large) if prefetch is None else prefetch
        self.pin_memory = pin_memory
        self.sample_keys = sample_keys
        self._lanes = lanes
        self._loaded: Arrangement | None = None
        self._standing = Standing(Progress(self.dataset.epoch, 0))
        self._counts: Counts | None = None

    @property
    def arrangement(self) -> Arrangement:
        """What decides the order: the options of dataset and loader, or those of a loaded state."""
        if self._loaded is not None:
            return self._loaded
        arrangement = self.dataset.arrange(self.batch_size, self._lanes)
        if not self.group_by_length and self._balance is None:
            return arrangement
        n_samples = self.dataset.n_samples_of(arrangement)
        group = group_size(n_samples, self.global_batch_size)
        balance = None
        if self._balance is not None:
            scope, weights = self._balance
            balance = Balance(scope, self.global_batch_size, self.batch_size, weights)
        return replace(arrangement, group=group, balance=balance)

    def _chosen_balance(
        self, balance: str | None, scope: Literal["auto"] | Scope, model: object | None
    ) -> tuple[Scope, Weights] | None:
        if balance is None:
            return None
        if scope == "auto":
            is_local = all(member.is_local for member in self.dataset.members)
            scope = "group" if is_local else "lanes"
        return scope, weights_of(model)

    @property
    def global_batch_size(self) -> int:
        """Rows of one step, of all ranks."""
        return self.batch_size * self.dataset.world.size

    @property
    def epoch(self) -> int:
        """The epoch of the next batch."""
        return self._standing.place.epoch

    @property
    def n_remaining(self) -> int | None:
        """Steps of the next iteration: fewer than len() after `load_state_dict`; None: no end."""
        return self._n_steps(self._standing.start.position)

    @property
    def n_remaining_samples(self) -> int | None:
        """Samples of all ranks from where the next iteration begins to the end of its epoch."""
        n_samples = self.dataset.n_samples_of(self.arrangement)
        return None if n_samples is None else max(0, n_samples - self._standing.start.position)

    def __len__(self) -> int:
        """Steps of a whole epoch, the same on every rank; TypeError for an endless mixture."""
        n = self._n_steps(0)
        if n is None:
            raise TypeError("an endless mixture has no len()")
        return n

    def __getitem__(self, index: object) -> NoReturn:
        """Refused: a DataLoader, or a plain Trainer, takes the loader for a dataset."""
        raise UsageError(
            "a ShardLoader makes batches: it is not a dataset to put under a DataLoader",
            fix="Iterate over it as it is; in a Trainer put ShardTrainerMixin before it.",
        )

    def __iter__(self) -> Iterator[Batch]:
        """The batches to the end of the epoch, from where the loader stands at the first one."""
        return Iteration(
            self._started, self._standing, per_step=self.global_batch_size, health=self.health
        )

    @checked
    def num_items_in_batch(self, *, accumulation: Positive = 1) -> int:
        """Labels that count in the optimizer step of the latest batch, on all ranks together.

        A step is `accumulation` batches of every rank, counted from the first batch of the
        iteration; the last step of an epoch may have fewer. The same number on every rank, from
        the indexes, without communication; of remote data they are read by ranges (80 bytes a
        sample, of every shard that the step touches). What transformers' models take as
        `num_items_in_batch`: with it the loss is this batch's part of the mean over the step.
        Raises UsageError before the first batch.
        """
        place, step = self._step_of_latest(accumulation)
        if self._counts is None:
            self._counts = Counts(self.dataset)
        return self._counts.n_supervised(self.arrangement, place.epoch, step.begin, step.end)

    @checked
    def ends_step(self, *, accumulation: Positive = 1) -> bool:
        """Whether the latest batch is the last of its optimizer step of `accumulation` batches.

        So is the last batch of an epoch, however many there were before it.
        """
        return self._step_of_latest(accumulation)[1].is_done

    def _step_of_latest(self, accumulation: int) -> tuple[Progress, Step]:
        place = self._standing.served
        if place is None:
            raise UsageError(
                "there is no batch yet of which this could be said",
                fix="Ask inside the loop over the loader, for the batch that it handed out.",
            )
        return place, Step.of(
            place,
            accumulation=accumulation,
            per_batch=self.global_batch_size,
            n_batches=self._n_steps(place.begun_at),
        )

    def for_eval(self, *, drop_last: bool = False) -> ShardLoader:
        """A loader of the same data for evaluation, which leaves this one as it is.

        Every iteration over it is one whole epoch, always the same (the dataset's `epoch`), with
        all rows unless `drop_last`. Raises UsageError for an endless mixture.
        """
        if self.dataset.n_samples_of(self.arrangement) is None:
            raise UsageError(
                "an evaluation over an endless mixture would never end",
                fix="Make a mixture with until='all' or 'first' for it.",
            )
        view = copy(self)
        view.dataset = self.dataset.for_eval(drop_last=drop_last)
        view.health = Health()
        view._loaded = None
        view._counts = None
        view._standing = Standing(Progress(self.dataset.epoch, 0), is_fixed=True)
        return view

    @checked
    def skip(self, n_steps: NonNegative) -> None:
        """Leave out the next `n_steps` steps of this epoch, without reading them.

        What accelerate's skip_first_batches does. Raises UsageError when there are fewer.
        """
        start, n_left = self._standing.start, self.n_remaining
        if n_left is not None and n_steps > n_left:
            raise UsageError(
                "there are fewer steps in this epoch",
                expected=f"at most {n_left}",
                found=str(n_steps),
                fix="Give set_epoch() the epoch first, then the steps of it that are done.",
            )
        start.position += n_steps * self.global_batch_size
        if n_steps and n_steps == n_left:
            start.go_to_next_epoch()
        self._standing.put(start)

    def __getattr__(self, name: str) -> NoReturn:
        if name == "drop_last":
            raise _NotThere(
                "a ShardLoader is no torch DataLoader: nothing may take it apart and make another "
                "of its dataset, as accelerate's skip_first_batches does",
                fix="Call loader.skip(n), or loader.load_state_dict(state): both are immediate. "
                "The option is in loader.dataset.drop_last.",
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @staticmethod
    def model_inputs(
        batch: Batch,
        model: torch.nn.Module | None = None,
        *,
        device: torch.device | str | None = None,
        borders: bool = True,
        flat: bool = False,
        seq_idx: bool = False,
    ) -> Batch:
        """What a transformers model is called with: `model(**loader.model_inputs(batch))`.

        The tensors that models take; of packed rows also `use_cache=False` and, with `borders`,
        `cu_seq_lens_q`, `cu_seq_lens_k` (int32), `max_length_q`, `max_length_k`, so that documents
        stay apart under every attention. `flat`: rows end to end, (1, B * T). `seq_idx`: the
        number of each token's document, int32, for hybrid models. `model`: without what its
        `forward` does not take. `device`: where tensors are moved to. Raises UsageError for pairs
        that stand apart.
        """
        return model_inputs(
            batch, model, device=device, borders=borders, flat=flat, seq_idx=seq_idx
        )

    def set_epoch(self, epoch: int) -> None:
        """Stand at the start of `epoch`; every rank must choose the same.

        Nothing changes when the loader stands in this epoch already, as after `load_state_dict`.
        Raises UsageError for what is no epoch.
        """
        start = self._standing.start
        if check("epoch", epoch, Epoch) == start.epoch:
            return
        if self._loaded is not None and epoch < start.epoch:
            warnings.warn(
                f"set_epoch({epoch}) goes back before epoch {start.epoch}, where the loaded "
                "state continues: its samples will be seen again (continue from loader.epoch)",
                stacklevel=2,
            )
        self._standing.put(Progress(epoch, 0))

    def state_dict(self) -> dict[str, Any]:
        """Where the run is, as integers, strings and, for `balance`, a dict: equal on every rank.

        Only batches that were handed out count, and the iteration that handed out the latest one:
        an iteration that is dropped or ends while another is under way leaves no trace. JSON,
        pickle and torch.save keep it.
        """
        place = self._standing.place
        return LoaderState(
            fingerprint=self.dataset.fingerprint,
            content=self.dataset.content,
            epoch=place.epoch,
            position=place.position,
            arrangement=self.arrangement,
            global_batch=self.global_batch_size,
        ).to_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a run was, in the order that it had.

        World size, batch_size and num_workers may differ: with the same global batch size the
        same global batches follow; with another one every sample is still seen exactly once, and
        a warning says so. The next iteration begins there, also one that was made before and
        handed out nothing yet. Raises StateMismatch for the state of another dataset.
        """
        loaded = LoaderState.from_dict(state)
        dataset = self.dataset
        loaded.check_dataset(dataset.members[0].root, dataset.fingerprint, dataset.content)
        self._warn_of_changes(loaded)
        self._loaded = loaded.arrangement
        start = Progress(loaded.epoch, loaded.position)
        if loaded.position and self._n_steps(loaded.position) == 0:
            start.go_to_next_epoch()
        self._standing.put(start)

    @property
    def _pins(self) -> bool:
        """Whether the batches of an iteration that begins now are pinned."""
        if self.pin_memory is None:
            return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
        return self.pin_memory and torch.cuda.is_available()

    def _started(self, place: Progress) -> tuple[Iterator[Made], int | None]:
        """The batches from a place to the end of its epoch, and their number."""
        n = self._n_steps(place.position)
        order = self.dataset.order(self.arrangement, place.epoch)
        self.dataset.check_present(order)
        if n == 0:
            warnings.warn(
                f"the samples do not fill a global batch of {self.global_batch_size}: "
                "there are no steps (drop_last=False would pad)",
                stacklevel=4,
            )
            return iter(()), n
        share = Share(self.dataset.world, self.batch_size, origin=place.position, n_steps=n)
        return self._batches(order, share), n

    def _n_steps(self, position: int) -> int | None:
        n_samples = self.dataset.n_samples_of(self.arrangement)
        if n_samples is None:
            return None
        return n_steps(
            max(0, n_samples - position),
            batch_size=self.batch_size,
            world_size=self.dataset.world.size,
            drop_last=self.dataset.drop_last,
        )

    def _batches(self, order: Order, share: Share) -> Iterator[Made]:
        dataset = self.dataset
        always = () if dataset.drop_last else ("n_padding_rows",)
        maker = BatchMaker(dataset.padding, always, dataset.stage.finish, self.pair_layout)
        options = {"with_keys": self.sample_keys, "with_timings": self.stats}
        if self.num_workers:
            work = WorkerBatches(
                dataset.members, dataset.options.access, order, share, dataset.stage, options
            )
            raw = batches_of_workers(
                work, self.num_workers, prefetch=self.prefetch, context=self.worker_context
            )
        else:
            raw = map(dataset.stage, read_batches(dataset.reader, order, share, **options))
        batches = map(maker, raw)
        if self._pins:
            batches = map(Pinned(), batches)
        elif self.num_workers:
            return batches
        if not self.prefetch:
            return batches
        return Prefetched(batches, self.prefetch, is_eager=dataset.stage.transform is not None)

    def _warn_of_changes(self, loaded: LoaderState) -> None:
        ours = self.arrangement
        for name in ("seed", "shuffle"):
            theirs, own = getattr(loaded.arrangement, name), getattr(ours, name)
            if theirs != own:
                warnings.warn(
                    f"the loaded state has {name} {theirs!r}, this loader {own!r}: "
                    "the state's is used",
                    stacklevel=3,
                )
        if loaded.global_batch != self.global_batch_size:
            warnings.warn(
                f"the global batch size was {loaded.global_batch} and is {self.global_batch_size}: "
                "every sample is still seen exactly once, but the batches are other ones",
                stacklevel=3,
            )


def _check_balance(
    balance: str | None, scope: str, model: object | None, group_by_length: bool
) -> None:
    """Raise UsageError for options that contradict each other."""
    if balance is None:
        for name, is_given in (("balance_scope", scope != "auto"), ("cost_model", bool(model))):
            if is_given:
                raise UsageError(f"{name} is given without balance", fix='Give balance="cost" too.')
    elif group_by_length:
        raise UsageError(
            "group_by_length and balance are two orders of one group",
            fix="Give one of them (balance sorts by cost, which grows with length).",
        )


class _NotThere(UsageError, AttributeError):
    """An attribute that others look for: `hasattr` says no, and who uses it is told why."""


def _dataset(dataset: str | Path | ShardDataset, options: DatasetOptions) -> ShardDataset:
    if not isinstance(dataset, ShardDataset):
        return ShardDataset(dataset, **options)
    if options:
        raise UsageError(
            "options of ShardDataset beside a dataset that is made already",
            found=", ".join(sorted(options)),
            fix="Give them to ShardDataset, or give ShardLoader the path.",
        )
    return dataset
