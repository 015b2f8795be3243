"""The reports of a ladder: Markdown, CSV, JSON, HTML and a plot, all made from one `ScaleResult`."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from gemkit.errors import GemkitError
from gemkit.runs.files import write_text
from gemkit.runs.folder import json_ready
from gemkit.runs.tables import print_table
from gemkit.studies.answer import metric_name
from gemkit.studies.page.text import MISSING, fixed, si
from gemkit.studies.report import markdown_table
from gemkit.studies.result import Score
from gemkit.studies.scaling import words as w
from gemkit.studies.scaling.result import (
    ArchResult,
    Comparison,
    CurvePoint,
    EqualQuality,
    Fit,
    Interval,
    Point,
    ScaleResult,
)

FORMAT_VERSION = 1
JSON = "scale.json"

CSV_COLUMNS = (
    *("ladder", "arch", "rung", "words", "task", "metric", "seeds", "mean", "sd", "law"),
    *("flops_per_example", "examples", "training_flops", "dense_params", "params", "examples_per_s"),
)


def write_reports(result: ScaleResult, folder: Path) -> list[Path]:
    """Writes scale.md, scale.csv, scale.json, scale.html and scale.svg; returns their paths.

    Raises:
        GemkitError: One cannot be written.
    """
    from gemkit.studies.scaling.figure import write_svg
    from gemkit.studies.scaling.html import write_html

    write_text(folder / "scale.md", to_markdown(result))
    write_text(folder / "scale.csv", to_csv(result))
    write_text(folder / JSON, to_json(result))
    write_html(result, folder / "scale.html")
    write_svg(result, folder / "scale.svg")
    return [folder / name for name in ("scale.md", "scale.csv", JSON, "scale.html", "scale.svg")]


# --- Markdown and the terminal ------------------------------------------------------------------------------


def to_markdown(result: ScaleResult) -> str:
    """The whole report for people who read text."""
    cost = w.COST_NAMES[result.cost]
    parts = [
        f"# {result.name}",
        w.answer(result),
        f"```bash\n{result.command}\n```",
        f"Data set `{result.dataset}`, {result.num_examples:,} test examples; seeds {w.listed(result.seeds)}; base: "
        f"`{' '.join(result.base) or 'the default run'}`.",
        f"![{metric_name(result.metric)} against {cost}](scale.svg)",
        "## Laws",
        markdown_table(*laws(result)),
        f"{metric_name(result.metric)} = E + A (C / C_1)^-alpha, C in {cost}. In brackets: 95 % intervals.",
    ]
    if result.comparisons:
        parts.append("## Cost at equal quality")
        if any(one.levels for one in result.comparisons):
            parts.append(markdown_table(*equal_quality(result)))
        parts += [
            f"{one.arch} and {one.other} are not comparable: {one.obstacle}."
            for one in result.comparisons
            if not one.levels
        ]
    parts += ["## Sizes", markdown_table(*sizes(result)), _rungs(result)]
    if result.notes:
        parts += ["## Notes", "\n".join(f"* {note}" for note in result.notes)]
    failed = [(p.name, seed, error) for a in result.archs for p in a.points for seed, error in p.failures.items()]
    if failed:
        parts.append("## Failures")
        parts += [f"{name}, seed {seed}:\n\n```text\n{error}\n```" for name, seed, error in failed]
    return "\n\n".join(parts) + "\n"


def print_summary(result: ScaleResult, paths: Sequence[Path], console: Console) -> None:
    """The tables, the answer, the notes and where the reports are."""
    title = f"{metric_name(result.metric)} of {result.task}"
    print_table(title, *sizes(result), console)
    print_table("laws", *laws(result), console)
    if any(one.levels for one in result.comparisons):
        print_table("cost at equal quality", *equal_quality(result), console)
    for line in (w.answer(result), *(f"note: {note}" for note in result.notes), *map(str, paths)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def sizes(result: ScaleResult) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each architecture at each size."""
    decimals = w.decimals_of(result)
    header = ["architecture", "rung", f"{metric_name(result.metric)} ± sd", "FLOPs/example", "examples seen"]
    header += ["training FLOPs", "dense parameters", "examples/s"]
    rows = []
    for arch in result.archs:
        for p in arch.points:
            costs = (p.flops_per_example, p.examples, p.training_flops, p.dense_params, p.examples_per_s)
            mean = fixed(p.score.mean, decimals) + ("" if p.score.sd is None else f" ± {fixed(p.score.sd, decimals)}")
            rows.append([arch.name, str(p.rung), mean, *(si(cost) for cost in costs)])
    return header, rows


def laws(result: ScaleResult) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the law of each architecture."""
    decimals = w.decimals_of(result)
    header = ["architecture", "law", "floor E", "alpha", "sd of seeds", "scatter about the law", "misfit p"]
    rows = []
    for arch in result.archs:
        if (fit := arch.fit) is None:
            rows.append([arch.name, "none", *[MISSING] * 5])
            continue
        noise = [fixed(fit.seed_sd, decimals + 1), fixed(fit.scatter_sd, decimals + 1), fixed(fit.misfit, 2)]
        floor = w.with_note(fixed(fit.floor, decimals), w.floor_note(fit, result.floor_from, decimals))
        alpha = w.with_note(fixed(fit.alpha, 3), w.alpha_note(fit))
        rows.append([arch.name, w.law_words(fit, decimals), floor, alpha, *noise])
    return header, rows


def equal_quality(result: ScaleResult) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what a level of quality costs one architecture as a multiple of another's cost."""
    decimals = w.decimals_of(result)
    header = [f"at {metric_name(result.metric)}", "the cost of", "is", "that of", "95 % interval"]
    rows = []
    for one in result.comparisons:
        for level in one.levels:
            found = w.interval_words(level.interval, w.ratio_words)
            rows.append([fixed(level.value, decimals), one.other, w.ratio_words(level.ratio), one.arch, found])
    return header, rows


def _rungs(result: ScaleResult) -> str:
    archs = [f"* {arch.name}: `{' '.join(arch.words) or 'the base'}`" for arch in result.archs]
    rungs = [f"* rung {i}: `{' '.join(words)}`" for i, words in enumerate(result.rungs, 1)]
    return "\n".join([*archs, *rungs])


# --- for programs -------------------------------------------------------------------------------------------


def to_csv(result: ScaleResult) -> str:
    """A row for each architecture at each size, with what its law says there."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for arch in result.archs:
        for p in arch.points:
            row: dict[str, Any] = {key: getattr(p, key) for key in (*CSV_COLUMNS[-6:], "rung")}
            row |= {"ladder": result.name, "arch": arch.name, "words": " ".join(p.words)}
            row |= {"task": result.task, "metric": result.metric, "mean": p.score.mean, "sd": p.score.sd}
            row |= {"seeds": sum(value is not None for value in p.score.by_seed)}
            if arch.fit is not None and (cost := p.cost(result.cost)) is not None:
                row["law"] = arch.fit.at(cost)
            writer.writerow(row)
    return file.getvalue()


def to_json(result: ScaleResult) -> str:
    """Everything, for `read_scale`."""
    values = {"format_version": FORMAT_VERSION} | dataclasses.asdict(result)
    return json.dumps(json_ready(values), indent=2, allow_nan=False) + "\n"


def read_scale(path: Path) -> ScaleResult:
    """What scale.json holds; `path` is the file or the ladder's folder.

    Raises:
        GemkitError: There is none, or it is damaged or of another version.
    """
    path = path / JSON if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format_version") != FORMAT_VERSION:
            raise ValueError("it is of another version of gemkit")
        tuples = {key: tuple(values[key]) for key in ("base", "seeds", "notes")}
        tuples |= {"rungs": tuple(map(tuple, values["rungs"])), "archs": tuple(map(_arch, values["archs"]))}
        return ScaleResult(**values | tuples | {"comparisons": tuple(map(_comparison, values["comparisons"]))})
    except FileNotFoundError:
        raise GemkitError(f"there is no {JSON} here", where=str(path), fix="name the folder of a ladder") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GemkitError(
            f"{path.name} is no report of a ladder: {error}",
            where=str(path),
            fix="gemkit scale --report writes it anew",
        ) from error


def _arch(values: Mapping[str, Any]) -> ArchResult:
    fit = None if values["fit"] is None else _fit(values["fit"])
    own = {"words": tuple(values["words"]), "points": tuple(map(_point, values["points"])), "fit": fit}
    return ArchResult(**{**values, **own})


def _point(values: Mapping[str, Any]) -> Point:
    score = Score(**values["score"] | {"by_seed": tuple(values["score"]["by_seed"])})
    failures = {int(seed): error for seed, error in values["failures"].items()}
    return Point(**{**values, "words": tuple(values["words"]), "score": score, "failures": failures})


def _fit(values: Mapping[str, Any]) -> Fit:
    curve = tuple(CurvePoint(**{**point, "band": _interval(point["band"])}) for point in values["curve"])
    intervals = {key: _interval(values[key]) for key in ("floor_interval", "alpha_interval")}
    return Fit(**{**values, **intervals, "curve": curve})


def _comparison(values: Mapping[str, Any]) -> Comparison:
    levels = tuple(EqualQuality(**{**one, "interval": _interval(one["interval"])}) for one in values["levels"])
    return Comparison(**{**values, "levels": levels})


def _interval(values: Mapping[str, Any] | None) -> Interval | None:
    return None if values is None else Interval(**values)
