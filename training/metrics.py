"""Where numbers go: `metrics.jsonl`, TensorBoard events, `curves.png`."""

import io
import json
import math
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

Watch = Callable[[int, int], None]  # (updates done, of how many)
Row = dict[str, int | float]  # `step`, and the values that were written at it


class MetricsWriter:
    """Appends one JSON object a line, and the same scalars for TensorBoard.

    Lines after `step` are dropped on opening: a resumed run writes them again. All
    processes read what is there, and only the one with `writes` changes anything.

    Attributes:
      evaluations: step -> the values of the evaluation that stood there, in order.
      watch: called with the step after each line; it stands in for a progress bar.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        *,
        writes: bool,
        watch: Callable[[int], None] | None = None,
    ):
        from tensorboardX import SummaryWriter

        self.watch = watch

        path = folder / "metrics.jsonl"
        rows = [row for row in read_metrics(path) if row["step"] <= step]
        self.evaluations = {
            row["step"]: {
                name.removeprefix("eval/"): value
                for name, value in row.items()
                if name.startswith("eval/")
            }
            for row in rows
            if "eval/loss" in row
        }
        if writes:
            path = path.resolve()
            partial = path.with_suffix(".partial")  # others may be reading it
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
            partial.replace(path)
        self._file = (path if writes else Path(os.devnull)).open("a")
        self._events = SummaryWriter(
            str(folder), purge_step=step + 1, write_to_disk=writes
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step} | values) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        if self.watch is not None:
            self.watch(step)

    def close(self) -> None:
        self._file.close()
        self._events.close()


def read_metrics(path: Path) -> list[Row]:
    """The rows of `metrics.jsonl`; a last line cut short by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that overflows."""
    return math.exp(loss) if loss < math.log(1e308) else math.inf


AVERAGES = 50  # points of a training curve at most, each a mean of those logged


def averaged(steps: list, values: list) -> tuple[list, list]:
    """A curve of single batches as means of neighbouring points."""
    size = -(-len(steps) // AVERAGES) or 1
    groups = range(0, len(steps), size)
    return (
        [statistics.fmean(steps[first : first + size]) for first in groups],
        [statistics.fmean(values[first : first + size]) for first in groups],
    )


def draw_curves(
    rows: list[Row],
    target: Path | io.BytesIO,
    lines: Sequence[tuple[str, str, float]],
    metrics: Sequence[str] = ("loss",),
) -> None:
    """Draws some metrics, each that a line is of, learning rate and gradient norm.

    Args:
      lines: (name, metric, value) to compare with.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    def column(name: str) -> tuple[list, list]:
        found = [(row["step"], row[name]) for row in rows if name in row]
        return [step for step, _ in found], [value for _, value in found]

    metrics = [*dict.fromkeys([*metrics, *(metric for _, metric, _ in lines)])]
    wide = 2 if len(metrics) < 4 else 3
    tall = -(-(len(metrics) + 1) // wide)
    figure = Figure(figsize=(5 * wide, 3.6 * tall), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(tall, wide, squeeze=False).reshape(-1)
    names = dict.fromkeys(name for name, _, _ in lines)
    colours = {name: f"C{number}" for number, name in enumerate(names, 3)}
    shown = {}  # one legend, beside what it would hide
    for metric, panel in zip(metrics, panels, strict=False):
        single = column(f"train/{metric}")
        if single[0]:
            panel.plot(*single, color="0.85", linewidth=1)
            panel.plot(*averaged(*single), color="0.5", linewidth=1, label="training")
        panel.plot(*column(f"eval/{metric}"), color="C0", marker=".", label="held-out")
        for name, of, value in lines:
            if of == metric:
                panel.axhline(value, color=colours[name], linestyle="--", label=name)
        panel.set(xlabel="step", title=metric.replace("_", " "))
        handles, labels = panel.get_legend_handles_labels()
        shown |= zip(labels, handles, strict=True)
    figure.set_figheight(3.6 * tall + 0.4 * -(-len(shown) // wide))
    place = "outside lower center"
    figure.legend(shown.values(), shown.keys(), loc=place, ncols=wide)
    rate = panels[len(metrics)]
    rate.plot(*column("train/learning_rate"), color="C2")
    rate.set(xlabel="step", title="learning rate and gradient norm")
    rate.set_ylabel("learning rate", color="C2")
    norm = rate.twinx()
    norm.plot(*column("train/grad_norm"), color="0.7", linewidth=1)
    norm.set_ylabel("gradient norm", color="0.5")
    norm.set_yscale("log")
    norm.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    norm.yaxis.set_major_formatter("{x:g}")
    norm.yaxis.set_minor_formatter("")
    for panel in panels[len(metrics) + 1 :]:
        panel.set_axis_off()
    figure.savefig(target, dpi=120)
