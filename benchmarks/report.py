"""The JSON of the benchmark scripts becomes docs/benchmarks.md and its plot.

    python benchmarks/report.py read.json [start.json images.json pack.json ...] [--out DIR]

Every script prints {"benchmark", "machine", "rows"} with --json. Nothing here is measured.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

Report = Mapping[str, Any]
DOCS = Path(__file__).resolve().parents[1] / "docs"
TITLES = {
    "read": "Reading, against other libraries",
    "start": "Starting, resuming and planning at size",
    "images": "Pictures",
    "vision": "Pictures with a processor",
    "pack": "Packing",
    "swarm": "Many ranks starting at once",
    "where": "Where the loader's time goes",
    "write": "Writing ready samples",
}
READ_TABLES = {
    "Samples a second, no worker process": ("samples_per_s", ("text/0", "packed/0", "zstd/0",
                                                             "images/0", "decoded/0")),
    "Samples a second, two worker processes": ("samples_per_s", ("text/2", "packed/2",
                                                                "images/2", "decoded/2")),
    "The same without workers, second epoch": ("later_samples_per_s", ("text/0", "packed/0")),
    "Microseconds that a training step of about 3 ms waits for its batch, no worker process": (
        "step_wait_us", ("text/0", "packed/0")),
    "CPU microseconds a sample, no worker process": (
        "cpu_us_per_sample", ("text/0", "packed/0", "zstd/0", "images/0", "decoded/0")),
    "Million tokens a second, no worker process": ("tokens_per_s", ("text/0", "packed/0")),
    "Bytes a token on disk": ("bytes_per_token", ("text/0", "packed/0", "zstd/0")),
}  # fmt: skip
TEXT_METRICS = {
    "first_batch_ms": "first batch, ms",
    "first_batch_cpu_ms": "of it CPU, ms",
    "resume_ms": "resume at 50 %, ms",
    "random_samples_per_s": "by number, samples/s",
    "listed_samples_per_s": "in lists of 32",
    "rss_peak_mb": "resident peak, MB",
    "rss_anonymous_mb": "of it anonymous, MB",
}
INTRO = """# Benchmarks

*Made by `python benchmarks/report.py` from what the scripts printed; the commands are at the end.*

The authors of shardkit wrote these, so run them yourself. Every contender reads the same samples,
pads them by the same rules and runs in a fresh process in every round, rounds interleaved; figures
are medians of as many rounds as loads are given (one load: a single round). A machine that others
use too makes absolute times worthless and ratios usable. A dash: the library has no such thing, or
it failed (see below).
"""
NOTES = """`text`: Alpaca, each sample a row, batches of 32 padded to int64; `packed`: to 2,048;
`zstd`: `text` from compressed files; `images`: rows with a picture, left encoded, batches of 8;
`decoded`: the picture decoded to 3 x 336 x 336 float32 (Pillow for all others, ShardLoader's
ImageTransform for us, which uses simplejpeg where it is installed, and threads).
Figures are of a first epoch behind its first batch: shardkit checks the hash of every sample in
it; of the others only ArrayRecord checks any. In later epochs nothing is left to check.
Every contender's files are read once just before, so they are in the page cache.
Memory is of the process after `text` without workers, peak RSS (VmHWM), in which the pages of
mapped files count although they are the system's file cache; anonymous memory is apart.
The memmap loop is not a library but the limit: flat files, and the same padding loop as all others.
"""
START_NOTES = """Imports, first batches and resumes are of fresh processes: `ms` is the median of
their wall time, `least ms` the shortest, which other programs on the machine disturb least,
`cpu ms` the median of CPU time. Goals: a first batch in 25 ms (50 for 1,000 shards), resume in 10,
`shardkit.loader` in 100 beyond torch. Hashes are checked; files are in the system's cache. The next
9 batches of 1,000 shards open the other shards, and in them Python looks through all of torch for
cycles, once. Ranks that are given a tokenizer start together; `cpu ms together` is their sum.
"""
VISION = """Real pictures (LLaVA-Pretrain's, 421 x 363 pixels on average) and processors of their
classes' default sizes. All but `fast_pixels` give the processor's pixels bit for bit. Processor
time is of all processes; memory is that of the process that trains, beyond what it had. Packing
reads, decodes and counts. With torchvision's processors, which are quicker, `fast_pixels`
takes 0.6 to 0.8 of their time: half of it is decoding and the same resize.
"""
END = """## Workers of a pack

    python benchmarks/scale.py alpaca_data.json TOKENIZER --times 1 10 --workers 1 2 4 8 16
    python benchmarks/scale.py alpaca_data.json TOKENIZER --times 100 --workers 2

CPU seconds of every process of `pack` (Qwen2.5, fastokens, no packing), read from /proc, on two
shared cores; Alpaca's 52,002 rows once, ten and a hundred times. The last line ran beside another
job. "Loads, forks" are the processes that scan and load, then fork. The parent's share is what no
further worker makes shorter: the caller and those processes, without loading once. MiB are those
of the caller and of one worker; the last column is the median shard's part of `--shard-size`.

| rows | workers | wall | CPU | caller | loads, forks | workers | parent | MiB (PSS) | shard |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|
| 52,002 | 1 | 5.55 | 5.75 | 5.73 | | | | 343 | 0.20 |
| 52,002 | 2 | 5.34 | 6.41 | 1.10 | 3.50 | 1.70 | 15.9% | 78, 324 (177) | 0.20 |
| 52,002 | 4 | 5.20 | 6.57 | 1.01 | 3.15 | 2.31 | 8.8% | 78, 322 (150) | 0.20 |
| 52,002 | 8 | 6.12 | 7.80 | 1.11 | 3.62 | 2.94 | 14.7% | 80, 322 (127) | 0.20 |
| 52,002 | 16 | 6.80 | 8.62 | 1.21 | 4.14 | 3.16 | 20.5% | 78, 322 (126) | 0.20 |
| 520,020 | 1 | 17.43 | 18.01 | 17.99 | | | | 345 | 0.20 |
| 520,020 | 2 | 12.63 | 18.88 | 1.36 | 4.11 | 13.29 | 10.0% | 80, 330 (216) | 0.20 |
| 520,020 | 4 | 13.13 | 20.39 | 1.29 | 4.10 | 14.83 | 8.9% | 80, 331 (158) | 0.20 |
| 520,020 | 8 | 13.34 | 21.15 | 1.12 | 3.80 | 15.92 | 6.3% | 78, 332 (137) | 0.20 |
| 520,020 | 16 | 14.31 | 23.53 | 1.08 | 3.49 | 18.56 | 4.2% | 80, 306 (166) | 0.20 |
| 5,200,200 | 2 | 120.78 | 107.88 | 0.94 | 3.28 | 103.54 | 1.8% | 78, 383 (283) | 0.90 |

Before workers scanned, at another load, the caller took 1.26 seconds of 52,002 rows and
1.74 to 1.88 of 520,020, in 205 MiB.

## Run it

    python benchmarks/read.py --json > read.json   # with --data, --folder, --python: see --help
    python benchmarks/start.py --json > start.json
    python benchmarks/images.py --json > images.json
    python benchmarks/pack.py alpaca_data.json --tokenizers DIR --json > pack.json
    python benchmarks/write.py --json > write.json
    python benchmarks/where.py --json > where.json
    python benchmarks/vision.py ROWS.json IMAGES --family qwen2_5_vl internvl --json > vision.json
    python benchmarks/report.py *.json   # or all of it on small data of our own: make bench
"""


WHERE = """Each line does one stage more than the line before it, so a stage costs the difference.
What stands between us and the memmap loop in a first epoch is the hash check: it reads the tar
headers and the padding between tokens as well, more bytes than the tokens are, and asks for pages
that nobody has touched. Other ways to pad were no faster: a gather by index (`np.take`), a mask
that takes the tokens, one `np.concatenate` into int64, a loop that writes each row, torch's
`masked_scatter_`. With worker processes the hand-over decides, for every library.
"""


def number(value: float | str | None) -> str:
    """For a table: three figures, thousands apart."""
    if value is None or isinstance(value, str):
        return value or "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] + ["--:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def about(report: Report) -> str:
    """What it ran on, in a line."""
    on = report["machine"]
    versions = ", ".join(f"{name} {text}" for name, text in sorted(on["versions"].items()))
    text = f"{on['n_cores']} x {on['processor']}, Python {on['python']}; load {on['load']}"
    return text + (f"; {versions}.\n" if versions else ".\n")


def read_section(report: Report) -> str:
    """Contenders as rows, cases as columns, a table for each metric."""
    found = {(row["contender"], row["case"]): row["metrics"] for row in report["rows"]}
    labels = list(dict.fromkeys(row["contender"] for row in report["rows"] if row["metrics"]))
    parts = [NOTES, "![samples a second](benchmarks.svg)\n"]
    for title, (metric, cases) in READ_TABLES.items():
        scale = 1e-6 if metric == "tokens_per_s" else 1.0
        rows = []
        for label in labels:
            values = [found.get((label, case), {}).get(metric) for case in cases]
            cells = [number(None if each is None else scale * each) for each in values]
            rows.append([label, *cells])
        heads = [case.split("/")[0] for case in cases]
        parts.append(f"### {title}\n\n" + table(["", *heads], rows))
    rows = [
        [label, *(number(found.get((label, "text/0"), {}).get(name)) for name in TEXT_METRICS)]
        for label in labels
    ]
    parts.append(
        "### Start, resume, memory (`text`)\n\n" + table(["", *TEXT_METRICS.values()], rows)
    )
    failed = [f"- {row['contender']}: {row['error']}" for row in report["rows"] if "error" in row]
    if failed:
        parts.append("Failed here:\n\n" + "\n".join(failed) + "\n")
    return "\n".join([*parts, ahead(found, labels)])


def ahead(found: Mapping[tuple[str, str], Mapping[str, float]], labels: Sequence[str]) -> str:
    """Our rate over that of the best rival and of the limit, wherever it is below 1 as well."""
    ours, limit = labels[0], next((label for label in labels if "limit" in label), "")
    rivals = [label for label in labels if label not in (ours, limit)]
    rows = []
    cases = dict.fromkeys(case for label, case in found if label == ours)
    for metric, note in (("samples_per_s", ""), ("later_samples_per_s", ", second epoch")):
        for case in cases:
            rate = found[ours, case].get(metric)
            rates = {r: found.get((r, case), {}).get(metric, 0.0) for r in rivals}
            best = max(rates, key=lambda name: rates[name], default="")
            if rate and rates.get(best):
                base = found.get((limit, case), {}).get(metric)
                of_limit = f"{rate / base:.2f}" if base else "-"
                rows.append([f"`{case}`{note}", best, f"{rate / rates[best]:.2f}", of_limit])
    heads = ["case/workers", "best other library", "shardkit is times as fast", "of the limit"]
    return "### Against the best\n\n" + table(heads, rows)


def other_section(report: Report) -> str:
    """Contender and case as rows, metrics as columns."""
    names = list(dict.fromkeys(name for row in report["rows"] for name in row["metrics"]))
    rows = [
        [f"{row['contender']}: {row['case']}", *(number(row["metrics"].get(n)) for n in names)]
        for row in report["rows"]
    ]
    return table(["", *(name.replace("_", " ") for name in names)], rows)


def plot(report: Report) -> str:
    """An SVG of samples a second without workers, logarithmic: text and packed."""
    rows = [row for row in report["rows"] if row["case"] in ("text/0", "packed/0")]
    labels = list(dict.fromkeys(row["contender"] for row in rows))
    top = math.log10(max(row["metrics"]["samples_per_s"] for row in rows))
    parts, y = [], 30
    for label in labels:
        parts.append(f'<text x="190" y="{y + 13}" text-anchor="end">{escape(label)}</text>')
        for case, colour in (("text/0", "#2b6cb0"), ("packed/0", "#dd8a2f")):
            for row in rows:
                if (row["contender"], row["case"]) == (label, case):
                    rate = row["metrics"]["samples_per_s"]
                    width = max(1, 400 * (math.log10(max(rate, 100)) - 2) / (top - 2))
                    parts.append(
                        f'<rect x="200" y="{y}" width="{width:.0f}" height="9" fill="{colour}"/>'
                        f'<text x="{205 + width:.0f}" y="{y + 8}" font-size="9">{rate:,.0f}</text>'
                    )
            y += 10
        y += 8
    head = "samples a second in one process, from 100, logarithmic: text (blue), packed (orange)"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="{y}" font-family="sans-serif"'
        f' font-size="12"><rect width="680" height="{y}" fill="white"/>'
        f'<text x="10" y="18">{head}</text>{"".join(parts)}</svg>\n'
    )


def main() -> None:
    """Read, and write docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=DOCS)
    args = parser.parse_args()
    reports = {
        found["benchmark"]: found for found in (json.loads(f.read_text()) for f in args.files)
    }
    parts = [INTRO]
    for name, report in reports.items():
        body = read_section(report) if name == "read" else other_section(report)
        note = {"start": f"\n{START_NOTES}", "where": f"\n{WHERE}", "vision": f"\n{VISION}"}.get(
            name, ""
        )
        parts.append(f"## {TITLES.get(name, name)}\n\n{about(report)}{note}\n{body}")
    (args.out / "benchmarks.md").write_text("\n".join([*parts, END]))
    if "read" in reports:
        (args.out / "benchmarks.svg").write_text(plot(reports["read"]))


if __name__ == "__main__":
    main()
