"""Writes the tables of docs/results.md, docs/plan.md and README.md from benchmarks/results/*.json.

python benchmarks/report.py          rewrite the pages
python benchmarks/report.py --check  exit 1 if a page and the files disagree
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import report_history
import report_kernels
import report_memory
import report_parallel
import report_readme
import report_transfer

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("docs/results.md", "docs/plan.md", "README.md")]
RESULTS = ROOT / "benchmarks" / "results"
MARK = re.compile(r"(<!-- table (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
STUDY = re.compile(r"(<!-- study (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
WHOLE = re.compile(r"(<!-- (?!end )(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
METRICS = {"auc": "AUC", "logloss": "logloss", "ne": "NE", "gauc_impressions": "gAUC (by impressions)"}


SPEED = "examples/s, one thread"


def table(report: dict[str, Any], task: str) -> str:
    """Markdown: mean and standard deviation over seeds; below, the paired difference from the first row."""
    variants = report["variants"]
    first = next(iter(variants.values()))["test"][task]
    metrics = [m for m in METRICS if m in first]
    lines = [
        "| " + " | ".join([f"{len(report['seeds'])} seeds, `{task}`", *(METRICS[m] for m in metrics), SPEED]) + " |",
        "|---" * (len(metrics) + 2) + "|",
    ]
    for name, entry in variants.items():
        cells = []
        for metric in metrics:
            row = entry["test"][task][metric]
            cell = f"{row['mean']:.4f} ± {row['sd']:.4f}"
            if difference := row.get("difference_from_first"):
                cell += f"<br>{difference['mean']:+.4f} ± {difference['ci95']:.4f}"
            cells.append(cell)
        lines.append(f"| {name} | {' | '.join(cells)} | {entry['examples_per_s_one_thread']:,.0f} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with its tables made anew."""

    def fill(match: re.Match[str]) -> str:
        report = json.loads((RESULTS / f"{match[2]}.json").read_text(encoding="utf-8"))
        return match[1] + table(report, match[3]) + match[4]

    filled, count = MARK.subn(fill, text)
    filled, studies = STUDY.subn(lambda match: match[1] + study(match[2]) + match[3], filled)
    filled, whole = WHOLE.subn(lambda match: match[1] + WHOLE_TABLES[match[2]]() + match[3], filled)
    if not count + studies + whole:
        raise SystemExit("a page has no table marks")
    return filled


def study(name: str) -> str:
    """The summary of a study of `gemkit ablate` whose reports lie in benchmarks/results/<name>/."""
    from gemkit.studies.report import markdown_table, read_result, summary

    return markdown_table(*summary(read_result(RESULTS / name))) + "\n"


def robustness() -> str:
    """What the robustness files say, a row each."""
    kills, configs, data, soak = (
        json.loads((RESULTS / f"robustness_{name}.json").read_text(encoding="utf-8"))
        for name in ("kills", "configs", "data", "soak")
    )
    phases = ", ".join(f"{number} {phase}" for phase, number in kills["kills_by_phase"].items())
    outcomes = ", ".join(f"{number} {outcome}" for outcome, number in data["outcomes"].items())
    named, wrong = configs["errors_that_name_what_was_hit"], configs["outcomes"]
    first, last = soak["readings"][0]["step"], soak["readings"][-1]["step"]
    rows = [
        (
            "kill -9 at random moments",
            "resumed each time: the bits of the uninterrupted run",
            f"{kills['kills']} kills ({phases}): {kills['runs_with_the_same_bits']} of {kills['runs']} runs have them",
        ),
        (
            "mutated configs and command lines",
            "each a clear error or a valid run",
            f"{configs['mutations']:,}: {wrong['clear error']} errors, {wrong['valid run']} valid runs, "
            f"{wrong['defect']} neither; {named:.1%} of the errors name what was changed",
        ),
        (
            "fuzzed data sets, CSV and Parquet files",
            "detected, or read correctly",
            f"{data['count']}: {outcomes}; {len(data['defects'])} silently wrong or crashed",
        ),
        (
            "memory over a long run",
            f"at step {last:,} within 2 % of that at step {first}",
            f"{soak['growth_since_step_500']:+.2%}",
        ),
    ]
    return rows_of(("what", "goal", "measured"), rows)


def rows_of(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, ["---"] * len(header), *rows])


def data() -> str:
    """What the files about the data path say, a row each."""
    reading, build, wait, balance, grouping = (
        json.loads((RESULTS / f"data_{name}.json").read_text(encoding="utf-8"))
        for name in ("reading", "build", "wait", "balance", "grouping")
    )
    ratios, rates = reading["ratios"], reading["median_examples_per_s"]
    contiguous, balanced = (balance["cases"][0]["max_over_mean"][way] for way in ("contiguous", "balanced"))
    of_history, alone = (grouping["groups"][way] for way in ("history", "none"))
    thread, nobody = (wait["runs"][way]["data_wait"] for way in ("1 thread", "none"))
    gib = build["memory_bytes"] / 2**30
    rows = [
        (
            f"bytes on disk: histories of {reading['mean_history']:.0f} events of {reading['examples']:,} examples",
            "10 times fewer than inside snappy Parquet rows",
            f"{ratios['bytes_snappy']:.1f} times fewer ({ratios['bytes_zstd']:.1f} than zstd)",
        ),
        (
            "examples/s of one core, shuffled, three columns of events",
            "5 times pyarrow reading those rows in order",
            f"{ratios['columns_against_parquet']:.1f} times ({rates['log_columns']:,.0f} against "
            f"{rates['parquet_rows']:,.0f}); {ratios['columns_against_copy']:.0%} of a plain copy of the same bytes",
        ),
        ("the same, whole batches as the model takes them", "", f"{ratios['batches_against_parquet']:.1f} times"),
        (
            "training waits for data, default model, histories of 1,000 events",
            "less than 5 % of the time",
            f"{thread:.2%} with one thread that reads ahead, {nobody:.2%} with none",
        ),
        (
            f"memory of a build of {build['rows']['events']:,} events",
            f"within {gib:.0f} GiB",
            f"{build['build']['peak_bytes'] / 2**30:.2f} GiB",
        ),
        (
            "its speed",
            "beside DuckDB sorting the same file",
            f"{build['events_per_s']:,.0f} events/s; DuckDB {build['duckdb_events_per_s']:,.0f}",
        ),
        (
            f"events of the heaviest of {balance['ranks']} ranks over the mean",
            "named",
            f"{contiguous['mean']:.3f} contiguous, {balanced['mean']:.4f} balanced",
        ),
        (
            "grouping examples that share a history: time of a step",
            "named",
            f"{grouping['speedup']:.2f} times faster ({of_history['histories_per_batch']:.0f} histories in a batch, "
            f"not {alone['histories_per_batch']:,.0f})",
        ),
    ]
    return rows_of(("what", "goal", "measured"), rows)


def interaction_speed() -> str:
    """Share of the matrix-product peak and examples/s of each interaction module."""
    report = _read("interaction_speed")
    header = ("four layers, one thread", "MFLOP an example, forward and backward", "share of the peak", "examples/s")
    rows = [
        (
            f"`{name}`" if "," not in name else f"`{name.partition(',')[0]}`,{name.partition(',')[2]}",
            f"{1e3 * row['gflop_per_example']:.2f}",
            f"{row['share_of_matmul']:.0%}",
            f"{row['examples_per_s']:,.0f}",
        )
        for name, row in report["modules"].items()
    ]
    return rows_of(header, rows)


def history_speed_layer() -> str:
    """Time of one layer against the length of the longest history, and how it grows."""
    report = _read("history_speed_layer")
    encoders = report["encoders"]
    lengths = list(next(iter(encoders.values())))
    header = ["ms for 8 histories", *(f"T = {int(t):,}" for t in lengths), "exponent", f"MB at {int(lengths[-1]):,}"]
    rows = [
        [
            HISTORY_NAMES.get(name, f"`{name}`"),
            *(f"{found[t]['median_ms']:,.0f}" for t in lengths),
            f"{report['exponent_from_1024'][name]:.2f}",
            f"{found[lengths[-1]]['memory_mb']:,.0f}",
        ]
        for name, found in encoders.items()
    ]
    return rows_of(header, rows)


def history_speed_step() -> str:
    """Time of a whole training step against the length of the longest history."""
    report = _read("history_speed_step")
    encoders = report["encoders"]
    lengths = list(next(iter(encoders.values())))
    header = ["ms a step", *(f"T = {int(t):,}" for t in lengths), "exponent", "times the pyramid's"]
    rows = [
        [
            HISTORY_NAMES.get(name, f"`{name}`"),
            *(f"{found[t]['median_ms']:,.0f}" for t in lengths),
            f"{report['exponent_from_1024'][name]:.2f}",
            f"{report['pyramid_at_longest'][name]:.1f}",
        ]
        for name, found in encoders.items()
    ]
    return rows_of(header, rows)


def plan_wukong() -> str:
    """Plans of Wukong's rows on more and more GPUs."""
    header = (
        *("row", "GPUs", "tables: groups x GPUs", "GB a GPU, of 72 usable", "compute ms", "step ms", "examples/s"),
        *("scaling ratio", "MFU", "what does not fit"),
    )
    rows = []
    for name, facts in _read("plan_wukong").items():
        for plan in facts["plans"]:
            mesh, step, misfit = plan["mesh"], plan["step_s"], plan["does_not_fit"]
            rows.append(
                (
                    name,
                    f"{plan['world_size']:,}",
                    f"{mesh['table_groups']} x {mesh['table_group']}",
                    f"{plan['memory_bytes']['total'] / 1e9:.1f}",
                    f"{1e3 * step['compute']:.1f}",
                    f"{1e3 * step['total']:.1f}",
                    f"{plan['examples_per_s'] / 1e6:,.1f} M",
                    f"{plan['scaling_ratio']:.2f}",
                    f"{plan['mfu']:.1%}",
                    f"{misfit['what']}: {misfit['missing_bytes'] / 1e9:.1f} GB too much" if misfit else "-",
                )
            )
    return rows_of(header, rows)


def start_speed() -> str:
    """Processor time to the first step by part, and how many times faster than with an empty cache."""
    report = _read("start_speed")
    parts = ("import", "data", "build", "compile", "step", "total", "clock")
    rows = []
    for side, name in START_NAMES.items():
        times = [f"{report['median_s'][side][part]:.1f}" for part in parts]
        ratios = report["cold_over"].get(side)
        rows.append([name, *times, *(f"{ratios[p]:.1f}" if ratios else "-" for p in ("total", "compile"))])
    return rows_of(["s", *parts[:-1], "on the clock", "whole: times faster", "compile: times faster"], rows)


START_NAMES = {
    "cold": "empty cache",
    "kept": "kept cache",
    "unpacked": "packed, and unpacked elsewhere",
    "uncompiled": "`train.compile=false`",
}

HISTORY_NAMES = {
    "padded": "full attention, padded to the longest",
    "loop": "full attention, history by history, no padding",
    "transformer": "full attention in buckets, `transformer`",
}


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


WHOLE_TABLES: dict[str, Callable[[], str]] = {
    "adsworld_conversions": lambda: report_transfer.cycle(_read("adsworld_conversions/report")),
    "adsworld_verticals": lambda: report_transfer.graph(_read("adsworld_verticals/report"), report_transfer.VERTICALS),
    "movielens1m_ages": lambda: report_transfer.graph(_read("movielens1m_ages/report"), report_transfer.AGES),
    "robustness": robustness,
    "data": data,
    "interaction_speed": interaction_speed,
    "history_speed_layer": history_speed_layer,
    "history_speed_step": history_speed_step,
    "start_speed": start_speed,
    "embedding_speed": lambda: report_memory.embedding_speed(_read("embedding_speed")),
    "freed_memory": lambda: report_memory.freed_memory(_read("freed_memory")),
    "late_labels": lambda: report_transfer.worlds(_read("late_labels")),
    "long_history": lambda: report_history.long_history(_read("long_history")),
    "memory": lambda: report_memory.memory(_read("memory")),
    "parallel_kills": lambda: report_parallel.kills(_read("parallel_kills")),
    "parallel_speed": lambda: report_parallel.speed(_read("parallel_speed")),
    "plan_measured": lambda: report_parallel.planned(_read("plan_measured")),
    "findings": lambda: rows_of(("", "found", "on"), report_readme.findings(_read)),
    "kernels_h100": lambda: report_kernels.kernels(_read("kernels_h100")),
    "plan_wukong": plan_wukong,
    "refreshed_codes": lambda: report_transfer.refreshed(_read("refreshed_codes")),
    "surfaces": lambda: report_transfer.worlds(_read("surfaces")),
    "transfer_bias": lambda: report_transfer.transfer(_read("transfer_bias"), with_cost=False),
    "transfer_codes": lambda: report_transfer.codes(_read("transfer_codes")),
    "transfer_staleness": lambda: report_transfer.staleness(_read("transfer_staleness")),
    "transfer_strategies": lambda: report_transfer.transfer(_read("transfer_strategies")),
    "wukong_gpu": lambda: report_kernels.wukong_gpu(_read("wukong_gpu")),
}
"""Mark in the page -> what makes the table below it."""


def main() -> int:
    different = False
    for path in PAGES:
        old = path.read_text(encoding="utf-8")
        new = page(old)
        if "--check" not in sys.argv:
            path.write_text(new, encoding="utf-8")
        elif new != old:
            different = True
            name = path.relative_to(ROOT).as_posix()
            print(f"{name} and benchmarks/results/ disagree: run python benchmarks/report.py", file=sys.stderr)
    return int(different)


if __name__ == "__main__":
    sys.exit(main())
