"""The reports of a study: Markdown, CSV, JSON and HTML, all made from one `StudyResult`."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from gemkit.errors import GemkitError
from gemkit.metrics.names import HIGHER_IS_BETTER
from gemkit.runs.files import write_text
from gemkit.runs.folder import json_ready
from gemkit.runs.tables import print_table
from gemkit.studies.answer import answer, metric_name, remedy, verdict
from gemkit.studies.page.text import MISSING, decimals_for, fixed, percent, si, signed
from gemkit.studies.result import Difference, Score, StudyResult, VariantResult

FORMAT_VERSION = 1
JSON = "report.json"

CSV_COLUMNS = (
    *("study", "variant", "task", "metric", "seeds", "mean", "sd"),
    *(f"difference_{f.name}" for f in dataclasses.fields(Difference) if f.name not in ("num_seeds", "verdict")),
    *("difference_seeds", "verdict", "params", "dense_params", "flops_per_example", "examples_per_s"),
)


def write_reports(result: StudyResult, folder: Path) -> list[Path]:
    """Writes report.md, report.csv, report.json and report.html; returns their paths.

    Raises:
        GemkitError: One cannot be written.
    """
    from gemkit.studies.html import write_html

    write_text(folder / "report.md", to_markdown(result))
    write_text(folder / "report.csv", to_csv(result))
    write_text(folder / JSON, to_json(result))
    write_html(result, folder / "report.html")
    return [folder / name for name in ("report.md", "report.csv", JSON, "report.html")]


# --- Markdown and the terminal ------------------------------------------------------------------------------


def to_markdown(result: StudyResult) -> str:
    """The whole report for people who read text."""
    parts = [
        f"# {result.name}",
        answer(result),
        f"```bash\n{result.command}\n```",
        f"Data set `{result.dataset}`, {result.num_examples:,} test examples; seeds {_listed(result.seeds)}; base: "
        f"`{' '.join(result.base) or 'the default run'}`.",
        f"## {_title(result.task, result.metric)}",
        markdown_table(*summary(result)),
        "Differences are from the base, paired by seed. " + _chance(result, result.task, result.metric),
        "FLOPs are those of a training step. Runs shared the machine, which examples/s has in it.",
        "## Notes",
        "\n".join(f"* {note}" for note in result.notes),
    ]
    others = [(task, metric) for task, metric in _tables(result) if (task, metric) != (result.task, result.metric)]
    for task, metric in others:
        parts += [f"## {_title(task, metric)}", markdown_table(*comparison(result, task, metric))]
        parts.append(_chance(result, task, metric))
    failed = [(v.name, seed, error) for v in result.variants for seed, error in v.failures.items()]
    if failed:
        parts.append("## Failures")
        parts += [f"{name}, seed {seed}:\n\n```text\n{error}\n```" for name, seed, error in failed]
    return "\n\n".join(parts) + "\n"


def print_summary(result: StudyResult, paths: Sequence[Path], console: Console) -> None:
    """The summary as far as a terminal is wide, the notes and where the reports are."""
    header, rows = summary(result)
    shown = [i for i, name in enumerate(header) if "relative" not in name]
    short = [[row[i].partition("; ")[0] for i in shown] for row in rows]
    print_table(_title(result.task, result.metric), [header[i] for i in shown], short, console)
    for line in (answer(result), *(f"note: {note}" for note in result.notes), *map(str, paths)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def summary(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table about the study's task and metric, with what each variant costs."""
    header, rows = comparison(result, result.task, result.metric)
    with_ne = result.metric != "ne" and any(_difference(v, result.task, "ne") for v in result.variants)
    costs = ["parameters", "FLOPs/example", "examples/s"]
    header = [*header[:-1], *(["NE, relative"] if with_ne else []), *costs, header[-1]]
    for variant, row in zip(result.variants, rows, strict=True):
        ne = _difference(variant, result.task, "ne")
        cells = [percent(ne.relative) if ne else MISSING] if with_ne else []
        cells += [si(variant.params), si(variant.flops_per_example), si(variant.examples_per_s)]
        row[-1:] = [*cells, row[-1]]
    return header, rows


def comparison(result: StudyResult, task: str, metric: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table about one metric: scores, differences, verdicts."""
    scores = [v.scores.get(task, {}).get(metric) for v in result.variants]
    found = [_difference(v, task, metric) for v in result.variants]
    places = decimals_for(s.sd for s in scores if s)
    finer = decimals_for((d.high - d.low) / 2 for d in found if d and d.high is not None and d.low is not None)
    header = ["variant", f"{metric_name(metric)} ± sd", "difference", "95 % interval", "relative", "verdict"]
    rows = []
    for variant, score, one in zip(result.variants, scores, found, strict=True):
        cells = [variant.name, _mean(score, places)]
        if one is None:
            cells += [MISSING, MISSING, MISSING, "base" if variant is result.variants[0] else MISSING]
        else:
            interval = MISSING if one.low is None else f"[{signed(one.low, finer)}, {signed(one.high, finer)}]"
            words = "; ".join(filter(None, [verdict(one), remedy(one)]))
            cells += [signed(one.mean, finer), interval, percent(one.relative), words]
        rows.append(cells)
    return header, rows


def _tables(result: StudyResult) -> list[tuple[str, str]]:
    """The (task, metric) of which any variant has a difference."""
    found = {(t, m) for v in result.variants for t, metrics in v.differences.items() for m in metrics}
    return sorted(found, key=lambda key: (key[0] != result.task, key[0], list(HIGHER_IS_BETTER).index(key[1])))


def _chance(result: StudyResult, task: str, metric: str) -> str:
    """What the intervals of a table are about."""
    found = [one for v in result.variants if (one := _difference(v, task, metric))]
    if any(one.examples_part is None for one in found):
        return "The intervals hold 95 % of the chance of seeds alone: test examples were not resampled."
    return f"The intervals hold 95 % of the chance of seeds and of test {result.resampled}."


def _difference(variant: VariantResult, task: str, metric: str) -> Difference | None:
    return variant.differences.get(task, {}).get(metric)


def _mean(score: Score | None, decimals: int) -> str:
    if score is None or score.mean is None:
        return MISSING
    return fixed(score.mean, decimals) + ("" if score.sd is None else f" ± {fixed(score.sd, decimals)}")


def _title(task: str, metric: str) -> str:
    return f"{metric_name(metric)} of {task}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    """A table as Markdown has it; bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


# --- for programs -------------------------------------------------------------------------------------------


def to_csv(result: StudyResult) -> str:
    """A row for each variant, task and metric."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for v in result.variants:
        costs = {key: getattr(v, key) for key in CSV_COLUMNS[-4:]}
        for task, metrics in v.scores.items():
            for metric, score in metrics.items():
                known = sum(value is not None for value in score.by_seed)
                row: dict[str, Any] = {"study": result.name, "variant": v.name, "task": task, "metric": metric}
                row |= {"seeds": known, "mean": score.mean, "sd": score.sd} | costs
                if one := _difference(v, task, metric):
                    values = dataclasses.asdict(one)
                    row |= {"verdict": values.pop("verdict"), "difference_seeds": values.pop("num_seeds")}
                    row |= {f"difference_{key}": value for key, value in values.items()}
                writer.writerow(row)
    return file.getvalue()


def to_json(result: StudyResult) -> str:
    """Everything, for `read_result`."""
    values = {"format_version": FORMAT_VERSION} | dataclasses.asdict(result)
    return json.dumps(json_ready(values), indent=2, allow_nan=False) + "\n"


def read_result(path: Path) -> StudyResult:
    """What report.json holds; `path` is the file or the study's folder.

    Raises:
        GemkitError: There is none, or it is damaged or of another version.
    """
    path = path / JSON if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format_version") != FORMAT_VERSION:
            raise ValueError("it is of another version of gemkit")
        tuples = {key: tuple(values[key]) for key in ("base", "seeds", "notes")}
        return StudyResult(**values | tuples | {"variants": tuple(map(_variant, values["variants"]))})
    except FileNotFoundError:
        raise GemkitError(f"there is no {JSON} here", where=str(path), fix="name the folder of a study") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GemkitError(
            f"{path.name} is no report of a study: {error}",
            where=str(path),
            fix="gemkit ablate --report writes it anew",
        ) from error


def _variant(values: Mapping[str, Any]) -> VariantResult:
    def nested(make: Callable[..., Any], tasks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Any:
        return {task: {metric: make(**one) for metric, one in metrics.items()} for task, metrics in tasks.items()}

    def score(**one: Any) -> Score:
        return Score(**one | {"by_seed": tuple(one["by_seed"])})

    by_seed = {key: {int(seed): value for seed, value in values[key].items()} for key in ("failures", "curves")}
    return VariantResult(
        **{
            **values,
            **by_seed,
            "words": tuple(values["words"]),
            "scores": nested(score, values["scores"]),
            "differences": nested(Difference, values["differences"]),
        }
    )
