"""Runs side by side: tables, curves, and a page that holds both."""

import base64
import csv
import html
import io
import json
import math
import os
import re
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from errors import UserError
from training.metrics import read_metrics

CONFIDENCE = 0.95
# Of what a trial sets those that are not swept, but follow from seed and budget.
FOLLOWING = ("seed", "init_from", "optim.total_steps")
FOLLOWING += ("optim.eval_every_steps", "optim.warmup_steps")
COLUMNS = ("trial", "runs", "median", "mean", "sd", "95 % of the mean", "less base")


class Run(NamedTuple):
    """A run folder, of the variant and the seed.

    Attributes:
        line: what it was begun with.
        table: that it stands in.
        start: the variant of the run that it started from.
    """

    variant: str
    seed: int
    folder: Path
    line: str
    table: str = ""
    start: str = ""


class Summary(NamedTuple):
    """Values of a metric over seeds.

    Attributes:
        interval: of the mean, by bootstrap; None of a single value.
        differences: to the base on the same seeds; of their mean the second interval.
    """

    values: list[float]
    interval: tuple[float, float] | None
    differences: list[float]
    difference_interval: tuple[float, float] | None


def value_of(folder: Path, metric: str) -> float | None:
    """A metric of a run: "test/accuracy" of its results, or of the last evaluation."""
    split, _, name = metric.partition("/")
    results = folder / "results.json"
    if results.exists():
        splits = json.loads(results.read_text())["splits"]
        return splits[split][name] if name in splits.get(split, {}) else None
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if metric in row]
    return rows[-1][metric] if rows else None


def is_constant(folder: Path) -> bool:
    """Whether a fine-tuned run failed: it predicts the same for every example."""
    path = folder / "results.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return "failed" in found and found["failed"]


def lines_of(folder: Path, metric: str) -> dict[str, float]:
    """What those come to in a metric of a run who only count, by name."""
    split, _, name = metric.partition("/")
    path, results = folder / "lines.json", folder / "results.json"
    if path.exists():
        lines = json.loads(path.read_text())
        own = [line for line in lines if metric == f"eval/{line['metric']}"]
        return {line["name"]: line["value"] for line in own}
    if not results.exists():
        return {}
    found = json.loads(results.read_text())
    if "lines" in found and split in found["lines"]:
        lines = found["lines"][split]
        return {own: lines[own][name] for own in lines if name in lines[own]}
    if split not in found["splits"]:
        return {}
    beside, ending = found["splits"][split], f"/{name}"
    return {
        own.removesuffix(ending): value
        for own, value in beside.items()
        if own.endswith(ending)
    }


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Where the mean lies, by resampling the values; None of fewer than two."""
    if len(values) < 2:
        return None
    from scipy import stats

    with warnings.catch_warnings():  # all values alike
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            (np.asarray(values),),
            np.mean,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
    return float(found.low), float(found.high)


def summaries(runs: Sequence[Run], metric: str) -> dict[str, Summary]:
    """Of each variant, in its order. Its base is the first one that started where it
    did, or where that is the only one there the first of all.

    Raises:
        UserError: a metric that no run has, with those that there are.
    """
    found: dict[str, dict[int, float]] = {}
    starts: dict[str, list[str]] = {}
    for run in runs:
        value = value_of(run.folder, metric)
        if value is None:
            continue
        if run.variant not in found:
            starts.setdefault(run.start, []).append(run.variant)
        found.setdefault(run.variant, {})[run.seed] = value
    if not found:
        raise UserError(
            f"no run has the metric {metric!r}: there are {', '.join(known(runs))}"
        )
    bases = {
        variant: together[0] if len(together) > 1 else next(iter(found))
        for together in starts.values()
        for variant in together
    }
    summed = {}
    for variant, values in found.items():
        base = found[bases[variant]]
        paired = [values[seed] - base[seed] for seed in values if seed in base]
        paired = [] if values is base else paired
        own = [*values.values()]
        summed[variant] = Summary(own, interval(own), paired, interval(paired))
    return summed


def counted(runs: Sequence[Run], metric: str) -> dict[str, Summary]:
    """Of the lines that the runs have in a metric, over their seeds; by the variant
    where another tokenizer or other labels make them others."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for run in runs:
        for name, value in lines_of(run.folder, metric).items():
            of_name = found.setdefault(name, {})
            of_name.setdefault(run.variant, {})[run.seed] = value
    summed = {}
    for name, by_variant in found.items():
        first, *others = by_variant.values()
        is_one = all(values == first for values in others)
        for variant, values in ({"": first} if is_one else by_variant).items():
            own = [*values.values()]
            of = f", {shown_name(variant, runs)}" if variant else ""
            summed[f"by counting: {name}{of}"] = Summary(own, interval(own), [], None)
    return summed


def known(runs: Sequence[Run]) -> list[str]:
    """The metrics that some run has."""
    names: set[str] = set()
    for run in runs:
        results = run.folder / "results.json"
        if results.exists():
            splits = json.loads(results.read_text())["splits"]
            names |= {f"{split}/{name}" for split in splits for name in splits[split]}
        else:
            for row in read_metrics(run.folder / "metrics.jsonl"):
                names |= {name for name in row if name.startswith("eval/")}
    return sorted(names)


def table(found: Mapping[str, Summary]) -> list[list[str]]:
    """The cells of `COLUMNS`, a row a variant."""

    def number(value: float) -> str:
        return f"{value:.4g}"

    def within(bounds: tuple[float, float] | None) -> str:
        return "" if bounds is None else f"{bounds[0]:.4g} to {bounds[1]:.4g}"

    rows = []
    for variant, summary in found.items():
        values, less = summary.values, ""
        if summary.differences:
            less = f"{statistics.fmean(summary.differences):+.3g}"
            if summary.difference_interval is not None:
                low, high = summary.difference_interval
                less += f" ({low:+.3g} to {high:+.3g})"
        spread = number(statistics.stdev(values)) if len(values) > 1 else ""
        rows.append(
            [
                variant,
                str(len(values)),
                number(statistics.median(values)),
                number(statistics.fmean(values)),
                spread,
                within(summary.interval),
                less,
            ]
        )
    return rows


# Curves.


def curve(folder: Path, metric: str) -> list[tuple[int, int, float, float]]:
    """(step, tokens, seconds of updates, value) at each evaluation; 0 tokens of a run
    whose rows are not all alike, as those of labelled tasks."""
    data = json.loads((folder / "config.json").read_text())["data"]
    seconds, before, points = 0.0, 0, []
    is_even = "sequence_length" in data
    size = data["batch_size"] * data["sequence_length"] if is_even else 0
    for row in read_metrics(folder / "metrics.jsonl"):
        if "train/tokens_per_second" in row:
            new = (row["step"] - before) * size
            before, seconds = (
                row["step"],
                seconds + new / row["train/tokens_per_second"],
            )
        if metric in row:
            points.append((row["step"], row["step"] * size, seconds, row[metric]))
    return points


def draw(runs: Sequence[Run], metric: str) -> bytes:
    """A PNG: a metric of evaluations against tokens and time, where those are known,
    else updates; a band over the seeds of a variant."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = {run.folder: curve(run.folder, metric) for run in runs}
    axes = [(0, 1, "updates")]
    if all(points[-1][1] for points in curves.values() if points):
        axes = [(1, 1e6, "million tokens"), (2, 60, "minutes of updates")]
    figure = Figure(figsize=(5.5 * len(axes), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    variants = [*dict.fromkeys(run.variant for run in runs)]
    for number, variant in enumerate(variants):
        own = [curves[run.folder] for run in runs if run.variant == variant]
        shortest = min(map(len, own))
        if not shortest:
            continue
        points = np.array([one[:shortest] for one in own])
        mean, colour = points.mean(axis=0), f"C{number % 10}"
        for panel, (place, scale, _) in zip(panels, axes, strict=True):
            x = mean[:, place] / scale
            name = shown_name(variant, runs)
            panel.plot(x, mean[:, 3], color=colour, marker=".", label=name)
            low, high = points[..., 3].min(axis=0), points[..., 3].max(axis=0)
            panel.fill_between(x, low, high, color=colour, alpha=0.2)
    panels[0].set_ylabel(in_words(metric))
    for panel, (_, _, words) in zip(panels, axes, strict=True):
        panel.set_xlabel(words)
        panel.grid(alpha=0.3)
    panels[-1].legend(fontsize="small", loc="best")
    return png(figure)


def draw_swept(
    found: Mapping[str, Summary], swept: Mapping[str, Mapping[str, Any]], metric: str
) -> bytes | None:
    """A PNG: the metric against the one number that the variants differ in; None where
    they differ in more, or in what is no number."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    own = {variant: swept[variant] for variant in found}
    everywhere = set.intersection(*({*one} for one in own.values()))
    differing = {name for one in own.values() for name in one} - {*FOLLOWING}
    differing -= {
        name for name in everywhere if len({str(x[name]) for x in own.values()}) == 1
    }
    if len(differing) != 1 or not differing <= everywhere:
        return None
    (setting,) = differing
    kinds = {type(one[setting]) for one in own.values()}
    if not kinds <= {int, float}:  # True and False are none
        return None
    figure = Figure(figsize=(5.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    order = sorted(own, key=lambda variant: own[variant][setting])
    x = [own[variant][setting] for variant in order]
    panel.plot(x, [statistics.fmean(found[v].values) for v in order], color="C0")
    for variant in order:
        here = [own[variant][setting]] * len(found[variant].values)
        panel.plot(here, found[variant].values, "o", color="C0", alpha=0.5)
    if min(x) > 0 and max(x) / min(x) >= 4:
        panel.set_xscale("log")
        panel.set_xticks(x, [f"{number:g}" for number in x])
        panel.set_xticks([], minor=True)
    panel.set(xlabel=setting, ylabel=in_words(metric))
    panel.grid(alpha=0.3)
    return png(figure)


def in_words(metric: str) -> str:
    return metric.replace("eval/", "held-out ").replace("_", " ")


def png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


# Reports.


def write_report(
    runs: Sequence[Run],
    metrics: Sequence[str],
    swept: Mapping[str, Mapping[str, Any]],
    folder: Path,
    failed: Mapping[str, str],
) -> None:
    """report.md, report.csv, report.html and the pictures; prints the tables.

    Args:
        swept: settings of each variant.
        failed: what went wrong, by the trial.

    Raises:
        UserError: a metric that no run has.
    """
    sections = {}
    for metric in metrics:
        having = [run for run in runs if value_of(run.folder, metric) is not None]
        for name in dict.fromkeys(run.table for run in having or runs):
            own = [run for run in having or runs if run.table == name]
            title = f"{name}: {metric}" if name else metric
            sections[title] = own, metric, summaries(own, metric)
    folder.mkdir(parents=True, exist_ok=True)
    text, page = ["# Comparison\n"], []
    for title, (own, metric, one) in sections.items():
        rows = table(one | counted(own, metric))
        for row, variant in zip(rows, one, strict=False):
            row[0] = shown_name(variant, own)
            mine = [run.folder for run in own if run.variant == variant]
            if constant := sum(map(is_constant, mine)):
                row[1] += f" ({constant} constant)"
        stem, pictures = re.sub(r"\W+", "_", title), {}
        if metric.startswith("eval/"):
            pictures[f"{stem}.png"] = draw(own, metric)
        against = None
        if len({run.start for run in own}) == 1:
            against = draw_swept(one, swept, metric)
        if against is not None:
            pictures[f"{stem}_swept.png"] = against
        for name, content in pictures.items():
            (folder / name).write_bytes(content)
        text += [f"## {title}\n", markdown(rows), ""]
        text += [f"![{title}]({name})\n" for name in pictures]
        page += [f"<h2>{html.escape(title)}</h2>", html_table(rows, COLUMNS)]
        page += [inline(content) for content in pictures.values()]
        print(f"\n{title}\n{markdown(rows)}")
    if failed:
        told = [f"{trial}: {error}" for trial, error in failed.items()]
        text += ["## Failed\n", *(f"- {line}" for line in told), ""]
        items = (f"<li>{html.escape(line)}</li>" for line in told)
        page += ['<h2>Failed</h2><ul class="failed">', *items, "</ul>"]
    text += ["## Runs\n"]
    linked = []
    for run in runs:
        place = os.path.relpath(run.folder, folder)
        told = f"- [{run.variant}, seed {run.seed}]({place}/config.json): `{run.line}`"
        text.append(told)
        linked.append(
            f'<li><a href="{html.escape(place)}/config.json">'
            f"{html.escape(run.variant)}, seed {run.seed}</a> "
            f'<a href="{html.escape(place)}/curves.png">curves</a> '
            f"<code>{html.escape(run.line)}</code></li>"
        )
    (folder / "report.md").write_text("\n".join(text) + "\n")
    body = "\n".join([*page, "<h2>Runs</h2><ul>", *linked, "</ul>"])
    (folder / "report.html").write_text(PAGE.replace("BODY", body))
    write_values(runs, folder / "report.csv")
    print(f"\nreport: {folder / 'report.html'} (report.md, report.csv)")


def shown_name(variant: str, runs: Sequence[Run]) -> str:
    """A variant without the name of the table that its runs stand in, and without
    "base" where something differs."""
    words = [word for word in variant.split(", ") if word != runs[0].table]
    return ", ".join(word for word in words if word != "base") or "base"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def html_table(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
        return f"<tr>{inner}</tr>"

    return (
        f"<table>{line(columns, 'th')}{''.join(line(row, 'td') for row in rows)}"
        "</table>"
    )


def inline(content: bytes) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(content).decode()}">'


PAGE = """<!doctype html>
<meta charset="utf-8"><title>Comparison</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; display: block; }
ul.failed { color: #b00020; }
code { font-size: 12px; color: #555; overflow-wrap: anywhere; }
</style>
<h1>Comparison</h1>
BODY
"""


def write_values(runs: Sequence[Run], path: Path) -> None:
    """Every metric of every run, as CSV."""
    names = known(runs)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "seed", "folder", *names])
        for run in runs:
            values = [value_of(run.folder, name) for name in names]
            shown = ["" if value is None else repr(value) for value in values]
            writer.writerow([run.variant, run.seed, run.folder, *shown])


def compare(folders: Sequence[Path], output: Path) -> None:
    """Writes the report of any runs, by what all of them have.

    Raises:
        UserError: no run folders, or nothing that they share.
    """
    for folder in folders:
        if not (folder / "config.json").exists():
            raise UserError(f"{folder} is not a run folder: it has no config.json")
    names = {folder: folder.name for folder in folders}
    if len({*names.values()}) < len(folders):
        names = {folder: str(folder) for folder in folders}
    runs = [Run(names[folder], 0, folder, str(folder)) for folder in folders]
    shared = set(known(runs[:1])).intersection(*(known([run]) for run in runs[1:]))
    shared = {
        name
        for name in shared
        if all(math.isfinite(value_of(run.folder, name) or 0.0) for run in runs)
    }
    if not shared:
        raise UserError(
            f"{', '.join(map(str, folders))} have no metric in common: "
            "compare runs of one kind"
        )
    write_report(runs, sorted(shared), {run.variant: {} for run in runs}, output, {})
