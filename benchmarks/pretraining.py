"""Speed of pre-training beside peers, in one command: a table and a plot.

    python -m benchmarks.pretraining [--preset=accelerator] [--rounds=7] [--steps=5]
        [--contenders=foreword,transformers,...] [--peer_python=PYTHON]
        [--nanogpt=FOLDER] [--flax_python=PYTHON] [--devices=1,2,4,8]
        [--sections=steps,scaling,input,startup,device] [--output=runs/speed]

All contenders of a case start and compile, one after the other; then they take turns,
`--steps` updates a turn, so that a noisy machine disturbs all alike. Every one has the
same batch, AdamW, clipping and dropout. Memory is the device's, on a CPU that of the
whole process. Preset "cpu" measures small models in float32 and everything around them;
"accelerator" checks the device and measures BERT-base at 512 and GPT-2 124M at 1,024
tokens in bfloat16 within `--minutes`.

The peers need torch and transformers (extra `peers`), in this Python or in that of
`--peer_python`; nanoGPT its folder with model.py; `flax_transformers` a Python with
transformers before version 5.
"""

import argparse
import dataclasses
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import startup
from benchmarks.contenders import CONTENDERS, Case

ROOT = Path(__file__).parent.parent
MINI = {"num_layers": 4, "num_heads": 4, "hidden_size": 256, "vocab_size": 8192}
MINI |= {"dropout": 0.1, "precision": "float32"}
BASE = {"num_layers": 12, "num_heads": 12, "hidden_size": 768, "precision": "bfloat16"}
BERT_BASE = BASE | {"vocab_size": 30_522, "dropout": 0.1, "padding": 0.1}
GPT2 = BASE | {"vocab_size": 50_304, "dropout": 0.0, "padding": 0.0}
PRESETS = {
    "cpu": [
        Case("bert", 32, 128, predicted=20, padding=0.1, **MINI),
        Case("gpt", 16, 256, predicted=0, padding=0.0, **MINI),
    ],
    "accelerator": [
        Case("bert", 32, 512, predicted=77, **BERT_BASE),
        Case("gpt", 8, 1024, predicted=0, **GPT2),
        Case("bert", 128, 512, predicted=77, **BERT_BASE),
        Case("gpt", 32, 1024, predicted=0, **GPT2),
    ],
}
TINY = {"rows": 2, "length": 16, "num_layers": 1, "num_heads": 1, "hidden_size": 16}
TINY |= {"vocab_size": 64}
SECTIONS = {
    "cpu": ["steps", "scaling", "input", "startup"],
    "accelerator": ["device", "steps"],
}
MINUTES = {"cpu": 1e6, "accelerator": 6.5}  # a start takes up to one more


class Failed(Exception):
    """A contender ended early; says why."""


@dataclasses.dataclass
class Side:
    """A contender at work."""

    label: str
    case: Case
    process: subprocess.Popen
    log: Path
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    rates: list[float] = dataclasses.field(default_factory=list)  # tokens a second
    peak_memory: int = 0

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.process.wait()
        errors = re.findall(r"(?m)^[\w.]*(?:Error|Exit)\b.*", self.log.read_text())
        raise Failed(errors[-1][:160] if errors else f"see {self.log}")

    def turn(self, steps: int) -> None:
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self.answer()
        tokens = steps * self.case.rows * self.case.devices * self.case.length
        self.rates.append(tokens / answer["seconds"])
        self.peak_memory = answer["peak_memory"]


@dataclasses.dataclass(frozen=True)
class Group:
    """What took turns together, and those that could not."""

    title: str
    sides: list[Side]
    failures: dict[str, str]  # label -> why

    @property
    def fastest(self) -> float:
        return max(statistics.median(side.rates) for side in self.sides)


def main() -> None:
    arguments = parse_arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    cases = [c for c in PRESETS[arguments.preset] if c.family in arguments.models]
    if arguments.tiny:
        cases = [*dict.fromkeys(map(tiny, cases))]
    groups: list[Group] = []
    with (arguments.output / "report.md").open("w") as file:

        def write(text: str) -> None:
            print(text, flush=True)
            file.write(text + "\n")
            file.flush()

        write(
            f"{time.strftime('%Y-%m-%d')}, {platform.platform()}, {os.cpu_count()} "
            f"cores, Python {platform.python_version()}"
        )
        for section in arguments.sections:
            write(f"\n## {section}\n")
            if section == "steps":
                measure_steps(arguments, cases, groups, write)
            elif section == "scaling":
                measure_scaling(arguments, cases[0], groups, write)
            elif section == "input":
                measure_input(arguments, cases, groups, write)
            elif section == "startup":
                variant = ":tiny" if arguments.tiny else ""
                write(startup.measure(f"configs/bert_mini.py{variant}"))
            else:
                write(measure_device(arguments))
    draw(groups, arguments.output / "speed.png")
    print(f"\nin {arguments.output}: report.md, speed.png, logs of the contenders")


def parse_arguments() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    def counts(text: str) -> list[int]:
        return [int(count) for count in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--preset", choices=tuple(PRESETS), default="cpu")
    parser.add_argument("--tiny", action="store_true", help="models of no use, quickly")
    parser.add_argument("--sections", type=names)
    parser.add_argument("--models", type=names, default=["bert", "gpt"])
    parser.add_argument("--contenders", type=names)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--devices", type=counts, default=[1, 2, 4, 8])
    parser.add_argument("--peer_python", default=sys.executable)
    parser.add_argument("--flax_python")
    parser.add_argument("--nanogpt", type=Path, help="folder with its model.py")
    parser.add_argument("--minutes", type=float, help="no contender starts after")
    parser.add_argument("--output", type=Path, default=Path("runs/speed"))
    arguments = parser.parse_args()
    arguments.sections = arguments.sections or SECTIONS[arguments.preset]
    minutes = arguments.minutes or MINUTES[arguments.preset]
    arguments.deadline = time.monotonic() + 60 * minutes
    if arguments.contenders is None:
        arguments.contenders = ["foreword", "transformers", "transformers_compiled"]
        if arguments.nanogpt:
            arguments.contenders += ["nanogpt", "nanogpt_compiled"]
        if arguments.flax_python:
            arguments.contenders += ["flax_transformers"]
    unknown = {*arguments.contenders} - {*CONTENDERS}
    unknown |= {*arguments.sections} - {*SECTIONS["cpu"], *SECTIONS["accelerator"]}
    if unknown:
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    return arguments


def tiny(case: Case) -> Case:
    """The case at a size that shows only that everything runs."""
    return dataclasses.replace(case, predicted=min(case.predicted, 4), **TINY)


# Taking turns.


def take_turns(
    arguments: argparse.Namespace, title: str, entries: dict[str, tuple[str, Case]]
) -> Group:
    """Starts the contenders, label -> (name, case), and lets them run in turns."""
    sides, failures = [], {}

    def attempt(label: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Failed as failed:
            failures[label] = str(failed)
            return None

    for label, (name, case) in entries.items():
        side = attempt(label, lambda: start(arguments, label, name, case))  # noqa: B023
        if side is not None:
            print(f"{label}: {side.facts['what']}", file=sys.stderr, flush=True)
            sides.append(side)
    for _ in range(arguments.rounds):
        for side in sides:
            if side.label not in failures:
                attempt(side.label, lambda: side.turn(arguments.steps))  # noqa: B023
    for side in sides:
        side.process.stdin.close()
        side.process.wait()
    return Group(title, [s for s in sides if s.label not in failures], failures)


def start(arguments: argparse.Namespace, label: str, name: str, case: Case) -> Side:
    """Returns when the contender has done its first update."""
    if time.monotonic() > arguments.deadline:
        raise Failed("not measured: the time was up")
    python = arguments.peer_python
    if name.startswith("foreword"):
        python = sys.executable
    elif name == "flax_transformers":
        python = arguments.flax_python or python
    nanogpt = str(arguments.nanogpt.resolve()) if arguments.nanogpt else ""
    flags = f"--xla_force_host_platform_device_count={case.devices}"
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the contenders share the device
    }
    case_as_json = json.dumps(dataclasses.asdict(case))
    log = arguments.output / f"{label}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [python, "-m", "benchmarks.contenders", name, case_as_json, nanogpt],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    side = Side(label, case, process, log)
    side.facts = side.answer()
    return side


# The sections.


def measure_steps(
    arguments: argparse.Namespace,
    cases: list[Case],
    groups: list[Group],
    write: Callable[[str], None],
) -> None:
    for case in cases:
        entries = {
            name: (name, case)
            for name in arguments.contenders
            if case.family == "gpt" or not name.startswith("nanogpt")
        }
        group = take_turns(arguments, case.label, entries)
        groups.append(group)
        write(steps_table(group))


def steps_table(group: Group) -> str:
    """Medians; and the first contender's ratio to each other, with its range."""
    lines = [
        f"### {group.title}\n",
        "| contender | tokens/s | not padding | first / this | range | MFU "
        "| of matrix products | peak memory, GB | first step, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    facts = next((s.facts for s in group.sides if "flops_per_token" in s.facts), None)
    for side in group.sides:
        first, rate = group.sides[0], statistics.median(side.rates)
        ratios = [a / b for a, b in zip(first.rates, side.rates, strict=True)]
        cells = [side.label, f"{rate:,.0f}"]
        if facts:
            flops, peak = rate * facts["flops_per_token"], facts["peak_flops"]
            mfu = f"{flops / peak:.1%}" if peak else "unknown chip"
            of_products = f"{flops / facts['matmul_rate']:.1%}"
            useful = f"{rate * facts['useful']:,.0f}"
        else:
            mfu = of_products = useful = "no foreword"
        cells += [useful, f"{statistics.median(ratios):.2f}"]
        cells += [f"{min(ratios):.2f} to {max(ratios):.2f}", mfu, of_products]
        cells += [f"{side.peak_memory / 1e9:.2f}", f"{side.facts['first_step']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {name} | {why} |{' |' * 7}" for name, why in group.failures.items()]
    lines.append("")
    lines += [f"- {side.label}: {side.facts['what']}" for side in group.sides]
    if facts:
        lines.append(
            f"- matrix products alone: {facts['matmul_rate'] / 1e12:,.3g} TFLOP/s "
            f"({facts['device']})"
        )
    return "\n".join(lines) + "\n"


def measure_scaling(
    arguments: argparse.Namespace,
    case: Case,
    groups: list[Group],
    write: Callable[[str], None],
) -> None:
    """The same rows on each device, so that perfect scaling doubles the tokens."""
    case = dataclasses.replace(case, rows=max(1, case.rows // 4))
    entries = {
        f"foreword_on_{count}": ("foreword", dataclasses.replace(case, devices=count))
        for count in arguments.devices
    }
    group = take_turns(arguments, f"weak scaling, {case.label} a device", entries)
    groups.append(group)
    write(f"{group.title}\n\n| devices | tokens/s | times the first | range |")
    write("|---|---|---|---|")
    for side in group.sides:
        first, rate = group.sides[0], statistics.median(side.rates)
        ratios = [a / b for a, b in zip(side.rates, first.rates, strict=True)]
        write(
            f"| {side.facts['what']} | {rate:,.0f} | {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f} to {max(ratios):.2f} |"
        )
    for name, why in group.failures.items():
        write(f"| {name} | {why} | | |")
    if group.sides and group.sides[0].facts["device"] == "cpu":
        write(
            f"\nThese devices are virtual: all share {os.cpu_count()} cores, so that "
            "1.00 times the first is perfect; it shows what cutting costs, not a gain."
        )


def measure_input(
    arguments: argparse.Namespace,
    cases: list[Case],
    groups: list[Group],
    write: Callable[[str], None],
) -> None:
    """On the embedded corpus; the rates of the steps are those measured before."""
    from benchmarks import input_pipeline
    from configs import bert_mini, gpt_mini

    fastest = {group.title: group.fastest for group in groups if group.sides}
    write("| batches alone | tokens/s | not padding | times the fastest step |")
    write("|---|---|---|---|")
    configs = {}
    for case in cases:
        module = bert_mini if case.family == "bert" else gpt_mini
        config = module.get_config("tiny" if arguments.tiny else "")
        config.data.update(batch_size=case.rows, sequence_length=case.length)
        if case.family == "bert":
            config.objective.max_predictions = case.predicted
        configs[config.name] = config
        rate, useful = input_pipeline.batches_per_second(config)
        times = f"{rate / fastest[case.label]:,.0f}" if case.label in fastest else "-"
        name = f"{config.name}, {case.rows} rows of {case.length}"
        write(f"| {name} | {rate:,.0f} | {useful:.1%} | {times} |")
    write("\n| batches of rows of 128 | rows a second of one core |\n|---|---|")
    for name, config in input_pipeline.ways("tiny" if arguments.tiny else "").items():
        write(f"| {name} | {input_pipeline.rows_per_core_second(config):,.0f} |")
    write("\n| text to shards | MB a second of one core |\n|---|---|")
    for name, config in configs.items():
        write(f"| {name} | {input_pipeline.megabytes_per_core_second(config):.2f} |")


def measure_device(arguments: argparse.Namespace) -> str:
    """The device's rate, and whether attention is right on it, in its own process."""
    command = [sys.executable, "-m", "benchmarks.device"]
    command += ["--tiny"] if arguments.tiny else []
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    verdict = "" if done.returncode == 0 else "\n**NOT RIGHT: see above**\n"
    return done.stdout + verdict


def draw(groups: list[Group], target: Path) -> None:
    """Tokens a second of each group: medians, and the range of the turns."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = [group for group in groups if group.sides]
    if not groups:
        return
    figure, axes = plt.subplots(
        len(groups), figsize=(8, 2.5 * len(groups)), squeeze=False
    )
    for axis, group in zip(axes[:, 0], groups, strict=True):
        medians = [statistics.median(side.rates) for side in group.sides]
        below = [m - min(s.rates) for m, s in zip(medians, group.sides, strict=True)]
        above = [max(s.rates) - m for m, s in zip(medians, group.sides, strict=True)]
        labels = [side.label for side in group.sides]
        axis.barh(labels, medians, xerr=(below, above), color="tab:blue", capsize=3)
        axis.invert_yaxis()
        axis.set(title=group.title, xlabel="tokens/s: median, range of the turns")
    figure.tight_layout()
    figure.savefig(target, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
