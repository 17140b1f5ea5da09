"""Whose place the state of a loader is, whoever else iterates over it."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from contextlib import nullcontext as calm
from itertools import count, islice, takewhile
from pathlib import Path
from typing import Any

import pytest
from accelerate.data_loader import skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_dataset

from shardkit import ShardLoader, ShardMixture
from shardkit.errors import UsageError

N_STEPS = 10


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 samples: ten batches of four."""
    path = tmp_path_factory.mktemp("forty")
    make_dataset(path, [17, 23])
    return path


def loader_of(dataset: Path, **options: Any) -> ShardLoader:
    """A loader that knows the keys of its batches."""
    own: Any = {"seed": 1, "rank": 0, "world_size": 1, "sample_keys": True, "prefetch": 0}
    return ShardLoader(dataset, 4, **own | options)


def place(loader: ShardLoader) -> tuple[int, int]:
    """Epoch and step of the state."""
    state = loader.state_dict()
    return state["epoch"], state["position"] // 4


@pytest.fixture(scope="module")
def uncut(dataset: Path) -> list[list[str]]:
    """The batches of three epochs."""
    loader = loader_of(dataset)
    return [batch["keys"] for _ in range(3) for batch in loader]


def peek(loader: ShardLoader) -> None:
    """Look at one batch, and forget it."""
    next(iter(loader))


def loop(loader: ShardLoader) -> None:
    """A whole pass."""
    for _ in loader:
        pass


def look_long(loader: ShardLoader) -> None:
    """A few batches."""
    for _ in zip(loader, range(7), strict=False):
        pass


def evaluate(loader: ShardLoader) -> None:
    """A pass for evaluation, twice."""
    view = loader.for_eval()
    assert [[b["keys"] for b in view] for _ in range(2)] == [[b["keys"] for b in view]] * 2


@pytest.mark.parametrize("between", [peek, loop, look_long, evaluate])
@pytest.mark.parametrize("workers", [0, 1])
def test_what_happens_inside_a_loop_leaves_no_trace(
    dataset: Path, uncut: list[list[str]], between: Any, workers: int
) -> None:
    """Order and state of three epochs are those of the uncut run."""
    loader, seen = loader_of(dataset, num_workers=workers), []
    for _ in range(3 - workers):
        for step, batch in enumerate(loader):
            seen.append(batch["keys"])
            if step in (0, 2, N_STEPS - 1):  # a whole loop may be one that trains
                with pytest.warns(UserWarning, match="for_eval") if between is loop else calm():
                    between(loader)
            assert place(loader) == divmod(len(seen), N_STEPS)
            assert loader.epoch == len(seen) // N_STEPS
    assert seen == uncut[: len(seen)]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_mix_of_iterations(dataset: Path, uncut: list[list[str]], data: st.DataObject) -> None:
    """The main loop's batches and state are those of the uncut run, whatever is done between."""
    loader, main, n = loader_of(dataset), None, 0
    others: list[Iterator[Any]] = []
    latest_is_main = True
    for action in data.draw(st.lists(st.sampled_from("nnnnpoekx"), max_size=25)):
        if action == "n" and n < len(uncut):
            main = main or iter(loader)
            batch = next(main, None)
            if batch is None:
                main = iter(loader)
                batch = next(main)
            assert batch["keys"] == uncut[n]
            n, latest_is_main = n + 1, True
        elif action == "p" and main is not None:
            peek(loader)
        elif action == "o":
            others.append(iter(loader))  # made, and never asked
        elif action == "e":
            loop(loader.for_eval())
        elif action == "k" and main is not None:
            others.append(iter(loader))
            next(others[-1])  # kept: the latest batch is its own
            latest_is_main = False
        elif action == "x":
            others.clear()
            latest_is_main = True
        if latest_is_main:
            assert place(loader) == divmod(n, N_STEPS)


@pytest.mark.parametrize("is_asked_for_more", [False, True])
def test_a_kept_look_is_dropped_after_the_epoch(dataset: Path, is_asked_for_more: bool) -> None:
    """An iterator that was begun inside a loop, and outlives it, does not take the state back."""
    loader = loader_of(dataset)
    main = iter(loader)
    for _ in range(N_STEPS - 1):
        next(main)
    kept = iter(loader)
    next(kept)
    next(main)
    if is_asked_for_more:
        assert next(main, None) is None
    del kept
    assert place(loader) == (1, 0)


def test_a_break_is_a_stop(dataset: Path, uncut: list[list[str]]) -> None:
    """The place of the only iteration stays when it is dropped; a new one begins anew."""
    loader = loader_of(dataset)
    look_long(loader)
    assert place(loader) == (0, 8)  # zip took one more
    again = loader_of(dataset)
    again.load_state_dict(loader.state_dict())
    assert [batch["keys"] for batch in again] == uncut[8:10]
    with pytest.warns(UserWarning, match="8 batches come again"):
        assert next(iter(loader))["keys"] == uncut[0]


@pytest.mark.parametrize("how", ["islice", "zip", "break"])
def test_batches_that_come_again_are_told(dataset: Path, uncut: list[list[str]], how: str) -> None:
    """A loop that is left and begun again repeats; not for evaluation, and not after set_epoch."""
    loader = loader_of(dataset)

    def three(batches: Any) -> list[list[str]]:
        if how == "islice":
            return [batch["keys"] for batch in islice(batches, 3)]
        if how == "zip":
            return [batch["keys"] for _, batch in zip(range(3), batches, strict=False)]
        return [
            batch["keys"] for batch, _ in takewhile(lambda one: one[1] < 3, zip(batches, count()))
        ]

    view = loader.for_eval()
    assert three(view) == three(view)
    assert next(iter(loader))["keys"] == uncut[0]
    assert three(loader) == uncut[:3]
    loader.set_epoch(1)
    assert three(loader) == uncut[10:13]
    with pytest.warns(UserWarning, match=r"batches come again .* of epoch 1 .*set_epoch"):
        assert three(loader) == uncut[10:13]
    loader.load_state_dict(loader.state_dict())
    assert three(loader)[0] == uncut[13 + (how == "break")]


def test_a_look_that_is_held_for_the_whole_script(dataset: Path, uncut: list[list[str]]) -> None:
    """`batches = iter(loader); first = next(batches)`, as tutorials begin: said, not silent."""
    loader = loader_of(dataset)
    held = iter(loader)
    next(held)
    with pytest.warns(UserWarning, match="let go of an iterator that was for a look"):
        loop(loader)
    assert place(loader) == (0, 1)
    del held
    assert [batch["keys"] for _ in range(2) for batch in loader] == uncut[:20]


def test_two_iterations_side_by_side(dataset: Path, uncut: list[list[str]]) -> None:
    """zip(L, L): both see the epoch, and the loader moves on once."""
    loader = loader_of(dataset)
    for step, (one, other) in enumerate(zip(loader, loader, strict=True)):
        assert one["keys"] == other["keys"] == uncut[step]
    assert place(loader) == (1, 0)


def test_an_old_iterator_that_is_held(dataset: Path) -> None:
    """A loop after an iterator that is held moves on, once that one was asked to its end."""
    loader = loader_of(dataset)
    old = iter(loader)
    for _ in range(N_STEPS):
        next(old)
    assert place(loader) == (1, 0)
    assert next(old, None) is None
    loop(loader)
    assert place(loader) == (2, 0)


class Repeating:
    """As DeepSpeed's RepeatingLoader: an iterator is made at once, before any state is loaded."""

    def __init__(self, loader: ShardLoader) -> None:
        self.loader = loader
        self.batches = iter(loader)

    def __next__(self) -> Any:
        try:
            return next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            return next(self.batches)


@pytest.mark.parametrize("n_done", [0, 3, 10, 13])
def test_a_state_that_is_loaded_after_iter(
    dataset: Path, uncut: list[list[str]], n_done: int
) -> None:
    """An iteration that handed out nothing yet begins where the loader stands then."""
    first = loader_of(dataset)
    endless = Repeating(first)
    assert [next(endless)["keys"] for _ in range(n_done)] == uncut[:n_done]
    assert place(first) == divmod(n_done, N_STEPS)
    second = loader_of(dataset)
    endless = Repeating(second)
    second.load_state_dict(first.state_dict())
    rest = [next(endless)["keys"] for _ in range(30 - n_done)]
    assert rest == uncut[n_done:]


@pytest.mark.parametrize("how", ["load_state_dict", "set_epoch", "skip"])
def test_an_iteration_that_is_overtaken_is_told(
    dataset: Path, uncut: list[list[str]], how: str
) -> None:
    """It goes on in its own order, warns once, and does not touch the state."""
    loader = loader_of(dataset)
    old = iter(loader)
    next(old)
    if how == "load_state_dict":
        loader.load_state_dict(loader.state_dict() | {"epoch": 2, "position": 8})
    elif how == "set_epoch":
        loader.set_epoch(2)
    else:
        loader.skip(3)
    here = place(loader)
    with pytest.warns(UserWarning, match="goes on that began before"):
        assert next(old)["keys"] == uncut[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [batch["keys"] for batch in old] == uncut[2:10]
    assert place(loader) == here
    assert next(iter(loader))["keys"] == uncut[here[0] * N_STEPS + here[1]]


def test_evaluation_counts_every_row(tmp_path: Path) -> None:
    """A view for evaluation has all rows, whatever drop_last says, and a place of its own."""
    make_dataset(tmp_path, [10])
    loader = loader_of(tmp_path)
    view = loader.for_eval()
    assert (len(loader), len(view), len(loader.for_eval(drop_last=True))) == (2, 3, 2)
    batches = list(view)
    assert sum(len(batch["keys"]) - batch["n_padding_rows"] for batch in batches) == 10
    assert place(loader) == (0, 0)
    assert "n_padding_rows" not in next(iter(loader))
    with pytest.raises(UsageError, match="never end"):
        ShardLoader(ShardMixture({tmp_path: 1.0}, until="endless"), 2).for_eval()


def test_steps_are_skipped(dataset: Path, uncut: list[list[str]]) -> None:
    """Without reading them; accelerate's way is refused with this one as the advice."""
    loader = loader_of(dataset)
    loader.skip(4)
    assert loader.n_remaining == 6
    assert [batch["keys"] for batch in loader] == uncut[4:10]
    loader.skip(10)
    assert place(loader) == (2, 0)
    with pytest.raises(UsageError, match="at most 10"):
        loader.skip(11)
    assert not hasattr(loader, "drop_last")
    assert getattr(loader, "drop_last", None) is None
    with pytest.raises(UsageError, match=r"(?s)skip_first_batches.*loader\.skip"):
        skip_first_batches(loader, 3)


def test_a_copy_keeps_the_place(dataset: Path, uncut: list[list[str]]) -> None:
    """Of a loader in the middle of a loop; what the copy does is its own."""
    loader = loader_of(dataset)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    for other in (copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
        assert place(other) == (0, 3)
        assert [batch["keys"] for batch in other] == uncut[:10]
        assert place(loader) == (0, 3)
    assert next(batches)["keys"] == uncut[3]
