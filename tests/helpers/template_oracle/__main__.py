"""The table of all templates; see the package."""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections import Counter
from pathlib import Path

from shared import SHARED
from small_tokenizer import FOLDER as SMALL

from shardkit.errors import ShardkitError
from template_oracle.compare import Outcome, compare
from template_oracle.pairs import differing_pairs, pairs
from template_oracle.reasons import RULES
from template_oracle.subject import Subject, trl_folder

_COLUMNS = ("template", "kept", "rejected", "marks =", "explained", "inference =", "explained")


def main() -> int:
    """Print the table; 1 when anything differs and no rule says why."""
    parser = argparse.ArgumentParser(prog="make oracle", description=__doc__)
    parser.add_argument(
        "places",
        nargs="*",
        type=Path,
        help="folders of .jinja files, or of tokenizers with a template; by default those of the "
        "installed trl package and of shared/data/tokenizers, where they are",
    )
    parser.add_argument("--over", type=Path, default=SMALL, help="the tokenizer for templates")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    total, reasons, rules = Counter[str](), Counter[str](), Counter[str]()
    print("{:34}{:>6}{:>10}{:>9}{:>11}{:>13}{:>11}".format(*_COLUMNS))
    for place in chosen.places or _places():
        for subject in _subjects(place, chosen.over):
            try:
                outcomes = compare(subject)
            except ShardkitError as error:
                total["templates refused"] += 1
                print(f"{subject.name:34}refused: {error}")
                continue
            _tell(subject, outcomes)
            total["templates"] += 1
            _add(total, reasons, rules, outcomes)
    total["differing"] += _pairs_differing(chosen.places or _places())
    print("", *(f"{n:5}  {what}" for what, n in total.items()), sep="\n")
    print("\nrejected", *(f"{n:5}  {why}" for why, n in reasons.most_common()), sep="\n")
    print("\ntokens explained", *(f"{n:5}  {RULES[rule]}" for rule, n in rules.items()), sep="\n")
    print(f"\ndiffering: {total['differing']}")
    return 1 if total["differing"] else 0


def _pairs_differing(places: list[Path]) -> int:
    """How many answers of pairs have other tokens than TRL gives them, by tokenizer."""
    n_differing = 0
    for place in places:
        if not (place / "tokenizer_config.json").exists() or trl_folder() is None:
            continue
        hf = importlib.import_module("transformers").AutoTokenizer.from_pretrained(place)
        rows = pairs()
        problems = differing_pairs(hf, rows)
        n_differing += len(problems)
        print(f"{place.name:34}{2 * len(rows)} pairs against TRL: {len(problems)} differing")
        print(*(f"    DIFFERING {problem}" for problem in problems), sep="\n", file=sys.stderr)
    return n_differing


def _places() -> list[Path]:
    found = [trl_folder(), *sorted((SHARED / "data" / "tokenizers").glob("*"))]
    return [place for place in found if place is not None]


def _subjects(place: Path, over: Path) -> list[Subject]:
    """Templates of a folder, or a tokenizer's own."""
    paths = sorted(place.glob("*.jinja"))
    if paths and not (place / "tokenizer_config.json").exists():
        return [Subject.of_file(path, over) for path in paths]
    own = Subject.of_tokenizer(place)
    return [] if own is None else [own]


def _tell(subject: Subject, outcomes: list[Outcome]) -> None:
    kept = [one for one in outcomes if one.reject is None]
    numbers = [len(kept), len(outcomes) - len(kept)]
    for of in ("marks", "inference"):
        said = Counter(getattr(one, of) for one in kept)
        numbers += [said["equal"], said["explained"]]
    print("{:34}{:6}{:10}{:9}{:11}{:13}{:11}".format(subject.name, *numbers))
    for one in outcomes:
        if one.wrong:
            print(f"    DIFFERING {one.title}: {one.wrong}", file=sys.stderr)


def _add(
    total: Counter[str], reasons: Counter[str], rules: Counter[str], outcomes: list[Outcome]
) -> None:
    for one in outcomes:
        total["differing"] += bool(one.wrong)
        rules.update(one.rules)
        if one.reject is not None:
            total["rejected"] += 1
            reasons[f"{one.reject.reason.value}: {one.reject.detail[:100]}"] += 1
            continue
        total["kept, ids equal"] += not one.wrong.startswith("other ids")
        for of in ("marks", "inference"):
            if said := getattr(one, of):
                total[f"mask against {of}: {said}"] += 1


if __name__ == "__main__":
    sys.exit(main())
