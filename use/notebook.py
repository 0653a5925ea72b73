"""What a notebook shows around the calls of the command lines: devices, a live curve,
tables, pictures with letters for the back row, a mistake as one sentence."""

import html
import io
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

import configs
from errors import UserError, system_fault
from training import comparison, metrics
from training.metrics import Watch
from use.run import open_run

BACK_ROW = {"font.size": 15, "lines.linewidth": 2.5, "figure.dpi": 100}
# Of scripts that matplotlib's own letters lack; the first that is there.
CJK_FONTS = ("Noto Sans CJK KR", "Noto Sans CJK JP", "NanumGothic", "NanumBarunGothic")
CJK_FONTS += ("Malgun Gothic", "AppleGothic", "Microsoft YaHei", "Hiragino Sans")
LARGER_BATCH = 4  # times the config's, on an accelerator
REDRAWN_SECONDS = 5.0
COPIED_SECONDS = 300.0
ACCELERATORS = {
    "/dev/nvidia[0-9]*": ("GPU", "cuda"),
    "/dev/accel[0-9]*": ("TPU", "tpu"),
    "/dev/vfio/[0-9]*": ("TPU", "tpu"),
}


# Before a run.


def start() -> None:
    """Tells of the devices, and from now on of a user's mistake in one sentence."""
    from IPython import get_ipython

    def told(shell: Any, kind: type, error: Exception, trace: Any, **_: Any) -> None:
        message = str(error) if kind is UserError else system_fault(error, [])
        if message:
            print(f"error: {message}", file=sys.stderr)
        else:
            shell.showtraceback((kind, error, trace))

    get_ipython().set_custom_exc((UserError, OSError), told)
    found = jax.devices()
    print(f"jax {jax.__version__} on {len(found)} x {found[0].device_kind}")
    if warning := fallen_back(jax.default_backend()):
        print(f"warning: {warning}", file=sys.stderr)


def fallen_back(backend: str, root: Path = Path("/")) -> str:
    """What is said where jax runs on the CPU beside an accelerator."""
    for pattern, (name, extra) in ACCELERATORS.items():
        if backend == "cpu" and any(root.glob(pattern[1:])):
            return (
                f"this machine has a {name}, but jax runs on the CPU: run "
                f"%pip install -e .[{extra}] and restart the session"
            )
    return ""


def read_config(
    command: str, named: str, options: Sequence[str], workdir: str | Path
) -> ConfigDict:
    """The config of a command's line, made to suit the devices, or as the run in
    `workdir` has it, which may have begun on others.

    Raises:
      UserError: as `configs.parse`.
    """
    config = configs.parse([command, f"--config={named}", *options], command).config
    asked = " ".join(options)
    if (Path(workdir) / "config.json").exists():
        there = configs.read_config(Path(workdir))
        batch, precision = there.data.batch_size, there.model.precision
    else:
        batch, precision = suited(config.data.batch_size, jax.devices())
    if "--config.data.batch_size=" not in asked:
        config.data.batch_size = batch
    if "--config.model.precision=" not in asked:
        config.model.precision = precision
    chosen = config.data.batch_size, config.model.precision
    print(f"batches of {chosen[0]}, matrix products in {chosen[1]}")
    return config


def suited(batch_size: int, devices: Sequence[Any]) -> tuple[int, str]:
    """A batch that the devices can share, larger on accelerators, and a precision that
    they are fast at."""
    one, count = devices[0], len(devices)
    if one.platform != "cpu":
        batch_size *= LARGER_BATCH
    is_old = float(getattr(one, "compute_capability", 8)) < 8  # a T4 has no bfloat16
    precision = "float32" if one.platform == "cpu" or is_old else "bfloat16"
    return -(-batch_size // count) * count, precision


# While it runs.


def live(workdir: str | Path, *names: str, copy_to: str | Path = "") -> Watch:
    """Shows a bar and the curves of the loss and other metrics, as a run writes them;
    every few minutes its folder is copied."""
    from IPython.display import HTML, display

    workdir = Path(workdir)
    bar, picture = (display(HTML(""), display_id=True) for _ in range(2))
    begun = drawn = copied = time.monotonic()
    first = -1
    if metrics.read_metrics(workdir / "metrics.jsonl"):  # of a run that has begun
        picture.update(curves(workdir, ("loss", *names)))

    def watch(step: int, total: int) -> None:
        nonlocal begun, first, drawn, copied
        now = time.monotonic()
        if first < 0:  # what was compiled before takes no part in the rate
            first, begun = step, now
        bar.update(HTML(progress(step, total, step - first, now - begun)))
        if step == total or now - drawn > REDRAWN_SECONDS:
            picture.update(curves(workdir, ("loss", *names)))
            drawn = time.monotonic()
        if copy_to and now - copied > COPIED_SECONDS:
            copy(workdir, copy_to)
            copied = time.monotonic()

    return watch


def progress(step: int, total: int, done: int, seconds: float) -> str:
    """A bar, and how long the rest takes, as it was for those done here."""
    left = f", {seconds / done * (total - step) / 60:.1f} minutes left" if done else ""
    return (
        f'<progress style="width:60%;height:1.6em" max="{total}" value="{step}">'
        f'</progress> <span style="font-size:130%">{step:,} of {total:,} updates{left}'
        "</span>"
    )


def curves(workdir: Path, names: Sequence[str] = ("loss",)) -> Any:
    """The curves of a run, with its lines to beat, as far as it has come."""
    from IPython.display import Image

    rows = metrics.read_metrics(workdir / "metrics.jsonl")
    target = workdir / "lines.json"
    found = json.loads(target.read_text()) if target.exists() else []
    lines = [(line["name"], line["metric"], line["value"]) for line in found]
    names = [*dict.fromkeys([*names, *(metric for _, metric, _ in lines)])]
    file = io.BytesIO()
    with large():
        metrics.draw_curves(rows, file, lines, names)
    return Image(file.getvalue())


def copy(folder: str | Path, target: str | Path) -> None:
    """Copies a run folder, whole or not at all, in the place of an older copy."""
    folder, target = Path(folder), Path(target)
    if not (folder / "config.json").exists():
        return
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    # What is half written changes its name when it is whole.
    skipped = shutil.ignore_patterns("*tmp*", "*.partial", "lock")
    try:
        shutil.copytree(folder, partial, ignore=skipped)
    except (shutil.Error, FileNotFoundError):  # a checkpoint gave way to its successor
        return
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


# After it.


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """A table in large letters."""
    from IPython.display import HTML

    def line(cells: Sequence[Any], tag: str) -> str:
        shown = (f"{x:.4g}" if isinstance(x, float) else str(x) for x in cells)
        style = "text-align:left;padding:.3em 1em;white-space:pre-wrap"
        cell = f'<{tag} style="{style}">'
        return f"<tr>{''.join(f'{cell}{html.escape(x)}</{tag}>' for x in shown)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return HTML(
        f'<table style="font-size:130%">{line(header, "th") if header else ""}{body}'
        "</table>"
    )


def against_lines(workdir: str | Path) -> Any:
    """What a pre-trained run came to, beside its lines to beat."""
    rows = metrics.read_metrics(Path(workdir) / "metrics.jsonl")
    evaluations = [row for row in rows if "eval/loss" in row]
    if not evaluations:
        return table((), [("it was stopped before it was judged: go on with it",)])
    lines = json.loads((Path(workdir) / "lines.json").read_text())
    last, found = evaluations[-1], []
    for line in lines:
        name = line["metric"]
        found.append((name, last[f"eval/{name}"], line["value"], line["name"]))
    return table(("held out", "this run", "line to beat", "which only counts"), found)


def task_results(workdir: str | Path) -> Any:
    """What a fine-tuned run came to by split, beside lines to beat."""
    results = json.loads((Path(workdir) / "results.json").read_text())
    rows = []
    for split, values in results["splits"].items():
        for metric, value in values.items():
            lines = comparison.lines_of(Path(workdir), f"{split}/{metric}")
            named = {"this run": value} | lines
            rows += [(split, name, metric, own) for name, own in named.items()]
    return table(("split", "who", "metric", "value"), rows)


def draw(make: Callable[[Any], None], size: tuple[float, float]) -> None:
    """Shows a picture that `make(figure)` draws."""
    import matplotlib.pyplot as plt

    with large():
        make(plt.figure(figsize=size, layout="constrained"))
        plt.show()


def draw_rates(rates: Mapping[str, Float[np.ndarray, " steps"]]) -> None:
    """The rate of each group of parameters over the updates."""

    def make(figure: Any) -> None:
        axes = figure.subplots()
        for number, (name, values) in enumerate(rates.items()):
            shown = "all others" if name == ".*" else name
            axes.plot(values, label=shown, color=f"C{number}")
        axes.set(xlabel="update", ylabel="learning rate")
        axes.set_title("how fast each group of parameters moves")
        axes.set_ylim(bottom=0)
        axes.legend()

    draw(make, (10, 5))


def draw_confusion(workdir: str | Path, split: str = "eval") -> None:
    """Of each label, what a classifier took its texts for."""
    from sklearn.metrics import confusion_matrix

    labels = open_run(workdir).labels
    text = (Path(workdir) / f"predictions_{split}.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    counts = confusion_matrix(
        [one["gold"] for one in found], [one["label"] for one in found], labels=labels
    )
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = 3.5 + 0.55 * len(labels)

    def make(figure: Any) -> None:
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        places = range(len(labels))
        axes.set_xticks(places, labels, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(places, labels)
        axes.set(xlabel="taken for", ylabel="is", title=f"{split}: {len(found)} texts")
        for row, column in np.ndindex(*counts.shape):
            if counts[row, column]:
                color = "white" if shares[row, column] > 0.5 else "black"
                shown = str(counts[row, column])
                axes.text(column, row, shown, ha="center", va="center", color=color)

    draw(make, (side, side))


def draw_attention(found: Mapping[str, Any], layer: int, head: int) -> None:
    """One head of what `inspect` found: each row is a token, and what it reads."""
    tokens = found["tokens"]
    weights = np.array(found["attention"])[layer, head]
    side = 3 + 0.5 * len(tokens)

    def make(figure: Any) -> None:
        axes = figure.subplots()
        axes.imshow(weights, cmap="Blues", vmin=0)
        places = range(len(tokens))
        axes.set_xticks(places, tokens, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(places, tokens)
        axes.set(xlabel="is read", ylabel="reads", title=f"layer {layer}, head {head}")

    draw(make, (side, side))


def draw_nearness(vectors: Float[np.ndarray, "N L D"], names: Sequence[str]) -> None:
    """How near the vectors of texts are, by layer: the cosine, of what is left when
    their mean is taken away."""
    vectors = vectors - vectors.mean(axis=0)
    vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    layers = [0, vectors.shape[1] // 2, vectors.shape[1] - 1]

    def make(figure: Any) -> None:
        panels = figure.subplots(1, len(layers), sharey=True)
        for axes, layer in zip(panels, layers, strict=True):
            own = vectors[:, layer]
            shown = axes.imshow(own @ own.T, cmap="RdBu", vmin=-1, vmax=1)
            axes.set_title(f"layer {layer}" if layer else "embedded tokens")
            axes.set_xticks([])
        panels[0].set_yticks(range(len(names)), names)
        figure.colorbar(shown, ax=panels, label="cosine", shrink=0.7)

    draw(make, (13, 4.5))


def draw_influence(
    found: Mapping[str, tuple[Sequence[str], Float[np.ndarray, "T T D"]]],
) -> None:
    """For each model of which words the state of a word knows, by `influence`."""

    import matplotlib.pyplot as plt

    wide = min(2, len(found))
    tall = -(-len(found) // wide)

    def make(figure: Any) -> None:
        panels = figure.subplots(tall, wide, squeeze=False).reshape(-1)
        for axes, (name, (tokens, changes)) in zip(panels, found.items(), strict=False):
            weights = np.linalg.norm(changes, axis=-1).T  # a row: one state
            weights = weights / np.maximum(weights.max(axis=1, keepdims=True), 1e-9)
            axes.imshow(np.sqrt(weights), cmap="Blues", vmin=0, vmax=1)
            places = range(len(tokens))
            axes.set_xticks(places, tokens, rotation=60, ha="right")
            plt.setp(axes.get_xticklabels(), rotation_mode="anchor")
            axes.set_yticks(places, tokens)
            axes.set_title(name)
        for axes in panels[len(found) :]:
            axes.set_axis_off()
        figure.supxlabel("depends on the word")
        figure.supylabel("the state of the word")

    draw(make, (5.5 * wide, 5.5 * tall))


def large() -> Any:
    """Within it, whatever is drawn has letters for the back row."""
    from matplotlib import font_manager, rc_context

    def found() -> list[str]:
        there = {font.name for font in font_manager.fontManager.ttflist}
        return [name for name in CJK_FONTS if name in there][:1]

    if not found():  # or installed since matplotlib looked for them
        for path in font_manager.findSystemFonts():
            if any(word in path.lower() for word in ("cjk", "nanum")):
                font_manager.fontManager.addfont(path)
    return rc_context(BACK_ROW | {"font.family": ["DejaVu Sans", *found()]})


def page_of(page: str) -> Any:
    """A page of `use.inspection`, within the notebook."""
    from IPython.display import HTML

    source = html.escape(page)
    return HTML(
        f'<div><iframe srcdoc="{source}" style="width:100%;height:800px;border:0">'
        "</iframe></div>"
    )
