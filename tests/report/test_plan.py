"""A plan is what the loader does: its figures against the batches of real ShardLoaders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import alpaca_rows, pack_small, write_json
from shardkit_cli.main import main
from synthetic import make_dataset
from transformers import LlamaConfig, LlavaConfig

from shardkit import ShardLoader, ShardMixture
from shardkit.builder import repack
from shardkit.dataset import open_dataset
from shardkit.errors import UsageError
from shardkit.order.cost import DEFAULT_WEIGHTS
from shardkit.report import Mixture, Topology
from shardkit.report.plan import Plan, PlannedRun, PlanOptions, Varied, make_plan, readers
from shardkit.report.plan.write import markdown_of, page_of

HOSTILE = "<script>alert(1)</script> | *x*"
LONG = [3 + (k * 2654435761 >> 9) % (900 if k % 11 == 0 else 30) for k in range(331)]
"""Lengths with a long tail."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain` and `packed` of 331 rows in 3 shards, `other` of 90, `pictures`."""
    folder = tmp_path_factory.mktemp("plan")
    make_dataset(folder / "plain", [100, 31, 200], lengths=LONG)
    make_dataset(folder / "packed", [100, 31, 200], packed=True, lengths=LONG)
    make_dataset(folder / "other", [90])
    make_dataset(folder / "pictures", [40, 33], n_images={k: k % 3 for k in range(73)})
    return folder


def planned(path: Path, ranks: int, batch: int, **options: Any) -> PlannedRun:
    """The plan of one run."""
    plan = make_plan(open_dataset(path), Varied((ranks,), (batch,)), PlanOptions(**options))
    return plan.runs[0]


def batches_of(data: Any, ranks: int, batch: int, **options: Any) -> list[list[dict[str, Any]]]:
    """(steps, ranks) the batches of real loaders."""
    loaders = []
    for rank in range(ranks):
        given = {"prefetch": 0, "sample_keys": True} | options
        if callable(data):
            loaders.append(ShardLoader(data(rank), batch, **given))
        else:
            loaders.append(ShardLoader(data, batch, rank=rank, world_size=ranks, **given))
    return [list(step) for step in zip(*loaders, strict=True)]


def places_of(batch: dict[str, Any]) -> int:
    """Places of documents in a batch."""
    if "attention_mask" in batch:
        real = np.array([bool(key) for key in batch["keys"]])
        return int(batch["attention_mask"].numpy()[real].sum())
    return int((batch["input_ids"] >= 1000).sum())  # synthetic ids begin there


def same(run: PlannedRun, steps: list[list[dict[str, Any]]], *, planes: int) -> None:
    """The figures of a plan are those of these batches."""
    every = [batch for step in steps for batch in step]
    n_places = sum(batch["input_ids"].numel() for batch in every)
    n_tokens = sum(map(places_of, every))
    labels = sum(int((batch["labels"] != -100).sum()) for batch in every)
    assert run.n_steps == run.n_simulated == len(steps)
    assert run.tokens_a_step == pytest.approx(n_tokens / len(steps), rel=1e-12)
    assert run.supervised_a_step == pytest.approx(labels / len(steps), rel=1e-12)
    assert run.padding == pytest.approx(1 - n_tokens / n_places, abs=1e-12)
    assert run.batch_bytes == max(8 * planes * batch["input_ids"].numel() for batch in every)


def cost_of(batch: dict[str, Any]) -> int:
    """By the definition, from the tokens of an unpacked batch."""
    token, square, _ = DEFAULT_WEIGHTS
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    return sum(token * n + square * n * n for n in lengths)


def factor_of(steps: list[list[dict[str, Any]]]) -> float:
    costs = np.array([[cost_of(batch) for batch in step] for step in steps], float)
    return float(costs.max(axis=1).sum() / costs.mean(axis=1).sum())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("ranks", "batch"), [(1, 7), (2, 4), (3, 1), (5, 3)])
@pytest.mark.parametrize("drop_last", [True, False])
def test_a_plan_is_what_the_loader_does(
    folder: Path, packed: bool, ranks: int, batch: int, drop_last: bool
) -> None:
    """Steps, tokens, labels, padding and memory, of several topologies, padded ends too."""
    path = folder / ("packed" if packed else "plain")
    options = {"seed": 3, "epoch": 1, "drop_last": drop_last, "pad_to_multiple_of": 8}
    run = planned(path, ranks, batch, **options)
    same(run, batches_of(path, ranks, batch, **options), planes=3 if packed else 4)
    assert run.n_left_over == abs(331 - (run.n_steps or 0) * ranks * batch)


@pytest.mark.parametrize("scope", [None, "lanes", "group", "step"])
def test_straggler_factors(folder: Path, scope: Any) -> None:
    """In the order as it is and as each balance lays it out, against the costs of the batches."""
    given: dict[str, Any] = {} if scope is None else {"balance": "cost", "balance_scope": scope}
    steps = batches_of(folder / "plain", 4, 3, seed=3, **given)
    run = planned(folder / "plain", 4, 3, seed=3, balance=scope is not None, scope=scope)
    assert run.straggler == pytest.approx(factor_of(steps), rel=1e-9)
    assert run.stragglers[scope or "random"] == run.straggler
    same(run, steps, planes=4)


def test_by_length(folder: Path) -> None:
    """group_by_length as the loader has it."""
    steps = batches_of(folder / "plain", 2, 4, seed=3, group_by_length=True)
    run = planned(folder / "plain", 2, 4, seed=3, group_by_length=True)
    same(run, steps, planes=4)
    assert run.straggler == pytest.approx(factor_of(steps), rel=1e-9)


def test_mixtures_and_pictures(folder: Path) -> None:
    """A mixture of two datasets, and pictures with their tokens expanded."""
    weights = {folder / "plain": 2.0, folder / "other": 1.0}
    mixture = Mixture([open_dataset(path) for path in weights], [*weights.values()])
    run = make_plan(mixture, Varied((2,), (4,)), PlanOptions(seed=5)).runs[0]
    steps = batches_of(lambda rank: ShardMixture(weights, seed=5, rank=rank, world_size=2), 2, 4)
    same(run, steps, planes=4)
    run = planned(folder / "pictures", 2, 3, seed=5)
    steps = batches_of(folder / "pictures", 2, 3, seed=5, expand_image_tokens=4, image_token_id=9)
    same(run, steps, planes=4)
    n_images = sum(len(batch.get("images", ())) for step in steps for batch in step)
    assert run.pictures_a_step == n_images / len(steps)


def test_a_long_epoch_is_looked_at_in_part(folder: Path) -> None:
    """Steps stay exact, the other figures are near, and the plan says so."""
    whole = planned(folder / "plain", 2, 1)
    data, options = open_dataset(folder / "plain"), PlanOptions(max_rows=120, shards=2)
    plan = make_plan(data, Varied((2,), (1,)), options)
    (part,) = plan.runs
    assert part.n_steps == whole.n_steps
    assert 40 <= part.n_simulated <= 60
    assert part.tokens_a_step == pytest.approx(whole.tokens_a_step, rel=0.5)
    assert plan.n_shards_read == 2
    assert any("2 of 3 shards" in note for note in plan.notes)
    assert any("groups of steps" in note for note in plan.notes)


def test_what_a_node_reads(folder: Path) -> None:
    """Shards of a node are those of the keys that its ranks see; readers() says the same."""
    run = planned(folder / "plain", 4, 2, seed=1, ranks_per_node=2)
    seen: list[set[str]] = [set(), set()]
    for step in batches_of(folder / "plain", 4, 2, seed=1):
        for rank, batch in enumerate(step):
            seen[rank // 2] |= {key.split("/")[0] for key in batch["keys"]}
    assert run.reads is not None
    assert run.reads.n_shards == len(max(seen, key=len))
    own = readers(open_dataset(folder / "plain"), Topology(world_size=4, batch_size=2, seed=1))
    names = [{f"shard-{n:05d}.tar" for n in [*own[k], *own[k + 1]]} for k in (0, 2)]
    assert all(found <= may for found, may in zip(seen, names, strict=True))


def test_other_lengths_and_packs(tmp_path: Path) -> None:
    """What another packing would give is what `repack` makes of it."""
    pack_small(write_json(tmp_path / "rows.json", alpaca_rows(150)), tmp_path / "data")
    data = open_dataset(tmp_path / "data")
    plan = make_plan(data, Varied((2,), (1,), (0,), (48, 64), ("best-fit", "concat", "none")))
    assert len(plan.runs) == 6
    for run in plan.runs:
        out = tmp_path / f"{run.packing}-{run.max_length}"
        made = repack(tmp_path / "data", out, max_length=run.max_length, packing=run.packing)
        real = planned(out, 2, 1)
        assert run.n_rows == made.n_samples
        assert run.n_steps == real.n_steps
        assert run.tokens_a_step == pytest.approx(real.tokens_a_step, rel=0.1)


def test_the_text_of_a_plan_is_escaped(tmp_path: Path) -> None:
    """A folder's name is no markup, in Markdown and in HTML."""
    root = tmp_path / HOSTILE.replace("/", "_")
    make_dataset(root, [30])
    plan = make_plan(open_dataset(root), Varied((1, 2)))
    for text in (markdown_of(plan), page_of(plan)):
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert" in text
    assert "Content-Security-Policy" in page_of(plan)
    assert "| *x*" not in markdown_of(plan)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables, JSON, files; wrong values end with 2 before anything is read."""
    command = ["plan", str(folder / "plain"), "--world-size", "2,4", "--batch-size", "1"]
    assert main(command) == 0
    assert "slowest" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["n_steps"] for run in found["runs"]] == [165, 82]
    for name in ("plan.md", "plan.html"):
        assert main([*command, "--out", str(tmp_path / name)]) == 0
        assert "slowest" in (tmp_path / name).read_text()
    capsys.readouterr()
    assert main(["plan", str(folder / "plain"), "--world-size", "2", "--readers", "--json"]) == 0
    assert [one["rank"] for one in json.loads(capsys.readouterr().out)] == [0, 1]
    (tmp_path / "list.json").write_text("[1, 2]")
    wrong = (
        ["--out", "plan.pdf"],
        ["--balance-scope", "lanes"],
        ["--cost-model", "big"],
        ["--cost-model", "²,1,0"],
        ["--cost-model", str(tmp_path / "list.json")],
        ["--packing", "best-fit", "--max-length", "8", "--weights", "1"],
        ["--readers"],
    )
    for words in wrong:
        assert main([*command, *words]) == 2, words


@pytest.mark.parametrize(
    "words",
    [
        ["--out", "plan.md"],
        ["--balance", "cost"],
        ["--group-by-length"],
        ["--no-drop-last"],
        ["--max-length", "100"],
        ["--packing", "concat"],
        ["--workers", "2"],
        ["--shards", "1"],
        ["--pad-to-multiple-of", "8"],
        ["--accumulation", "2"],
    ],
)
def test_readers_refuse_what_changes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """An option that --readers would not look at is named; those that count are taken."""
    command = ["plan", str(folder / "plain"), "--world-size", "2", "--readers", "--json"]
    assert main([*command, "--seed", "1", "--epoch", "1", "--shuffle", "window"]) == 0
    capsys.readouterr()
    assert main([*command, *words]) == 2
    assert f"{words[0]} changes nothing" in capsys.readouterr().err


def test_a_model_says_what_tokens_cost(folder: Path, tmp_path: Path) -> None:
    """--cost-model takes a config.json; the loader takes the same config."""
    from shardkit_cli.plan_cmd import _weights

    from shardkit.order.cost import weights_of

    fields = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(fields | {"vocab_size": 1000}))
    config = type("Config", (), fields | {"vocab_size": 1000})()
    assert _weights(str(tmp_path)) == _weights(str(tmp_path / "config.json")) == weights_of(config)
    assert _weights("7,1,2") == (7, 1, 2)

    like_llava = {"model_type": "llava", "text_config": {"model_type": "llama"}}
    (tmp_path / "llava.json").write_text(json.dumps(like_llava))
    found = _weights(str(tmp_path / "llava.json"))
    assert found == weights_of(LlavaConfig(text_config=LlamaConfig()))
    assert found[2] > 0


def test_balance_is_recommended_where_it_helps(folder: Path) -> None:
    """Of rows of very unlike cost, and not of rows all alike."""

    def advice(plan: Plan) -> str:
        return " ".join(plan.advice)

    unlike = make_plan(open_dataset(folder / "plain"), Varied((4,), (2,)))
    assert 'balance="cost"' in advice(unlike)
    assert "shorter" in advice(unlike)
    make_dataset(folder / "alike", [200], lengths=[30] * 200)
    alike = make_plan(open_dataset(folder / "alike"), Varied((4,), (2,)))
    assert "would change little" in advice(alike)
    with pytest.raises(UsageError, match="two orders"):
        PlanOptions(balance=True, group_by_length=True)
