"""Runs a list of trials, each a normal run folder, and compares them.

    python sweep.py --sweep=configs/sweeps/rates.py --workdir=sweeps/rates [--list]
    python sweep.py compare runs/one runs/other [--output=compared]

The same line again goes on where it was: what is done is not run again, a trial that
was killed resumes, one that failed waits for --retry. docs/sweeps.md says how a sweep
is written, and what its report shows.
"""

import argparse
import dataclasses
import importlib.util
import inspect
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import configs
import errors
from configs.sweeps import Overrides, Stage, Sweep
from data import cache
from errors import UserError
from settings import NUMBER, SCALES
from tasks import KINDS
from training import comparison
from training.metrics import read_metrics

SCRIPTS = {"train": "train.py", "finetune": "finetune.py", "score": "score.py"}
OWN = ("init_from", "seed")  # of a sweep, and no flag of score.py
TIMED_STEPS, TIMED_AT_ONCE = 40, 5  # that a budget of seconds is measured with
BUDGETS = ("steps", "tokens", "flops", "seconds")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a stage.

    Attributes:
        round: its number; all of one begin when those before are over.
        variant: its name, without the seed.
        overrides: of the stage's config, the seed and the budget among them.
        after: the trial that it starts from.
    """

    stage: Stage
    round: int
    variant: str
    seed: int
    folder: Path
    overrides: Overrides
    after: "Trial | None"

    def line(self) -> list[str]:
        """As typed on the command line, without the folder."""
        script, given = SCRIPTS[self.stage.command], self.overrides
        if self.stage.command == "score":
            flags = {"workdir": given["init_from"]} | given
            words = [f"--{name}={flags[name]}" for name in flags if name not in OWN]
            return [script, self.stage.config, *words]
        words = [f"--config.{name}={value}" for name, value in given.items()]
        return [script, f"--config={self.stage.config}", *words]

    def outcome(self) -> dict[str, Any]:
        """{"status": "done", "failed" or "open"}, and of a failed one the "error"."""
        if self.stage.command == "run":
            return {"status": "done"}
        path = self.folder / "trial.json"
        return json.loads(path.read_text()) if path.exists() else {"status": "open"}


def main(argv: list[str]) -> int:
    arguments = parse_arguments(argv[1:])
    if arguments.runs:
        comparison.compare([Path(run) for run in arguments.runs], arguments.output)
        return 0
    asked, workdir = read_sweep(arguments.sweep), arguments.workdir
    if arguments.list:
        print(show(asked, workdir))
        return 0
    return run(asked, workdir, arguments.retry, arguments.processes)


def show(asked: Sweep, workdir: Path) -> str:
    """The trials of a sweep, and what they cost; nothing is run.

    Raises:
      UserError: as `planned`.
    """
    trials = planned(asked, workdir)
    if not asked.budget.endswith("seconds"):
        trials = [budgeted(asked, trial, workdir) for trial in trials]
    return listed(asked, trials, product_rate)


def run(asked: Sweep, workdir: Path, retry: bool = False, processes: int = 0) -> int:
    """Runs what is open of a sweep, and reports on it; the exit status.

    Args:
      retry: what failed before, too.
      processes: that run trials at once; 0: in this one, one after the other.

    Raises:
      UserError: as `planned`; a folder that cannot be written; as `report`.
    """
    trials = planned(asked, workdir)
    errors.check_folder(workdir, "--workdir")
    trials = [budgeted(asked, trial, workdir) for trial in trials]
    print(listed(asked, trials), flush=True)
    return run_all(trials, retry, processes) or report(asked, trials, workdir)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    if argv[:1] == ["compare"]:
        parser = argparse.ArgumentParser(prog="sweep.py compare")
        parser.add_argument("runs", nargs="+", help="run folders")
        parser.add_argument(
            "--output", type=Path, default=Path("compared"), help="folder [%(default)s]"
        )
        return parser.parse_args(argv[1:])
    parser = argparse.ArgumentParser(prog="sweep.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--sweep", required=True, help="a file such as those named")
    parser.add_argument("--workdir", type=Path, required=True, help="of all its runs")
    parser.add_argument("--list", action="store_true", help="shows the trials, no more")
    parser.add_argument("--retry", action="store_true", help="those that failed, too")
    parser.add_argument(
        "--processes", type=int, default=0, help="trials at once [0: in this process]"
    )
    parser.set_defaults(runs=())
    return parser.parse_args(argv)


# Sweep file -> trials.


def planned(asked: Sweep, workdir: Path) -> list[Trial]:
    """The trials of a sweep, each of which is right.

    Raises:
      UserError: as `make_trials`, `check` and `check_metrics`.
    """
    trials = make_trials(asked, workdir)
    for trial in trials:
        check(trial)
    check_metrics(asked, trials)
    return trials


def read_sweep(asked: str) -> Sweep:
    """The sweep of a file, FILE.py or FILE.py:ARGUMENT.

    Raises:
      UserError: no such file, an argument that it does not take, or lacks; as
        `check_sweep`.
    """
    name, suffix, argument = asked.partition(".py")
    path = name + suffix
    if not Path(path).is_file():
        raise UserError(f"--sweep={path}: no such file")
    spec = importlib.util.spec_from_file_location("asked_sweep", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_sweep"):
        raise UserError(f"--sweep={path} has no get_sweep(): see docs/sweeps.md")
    takes_one = bool(inspect.signature(module.get_sweep).parameters)
    if argument and not takes_one:
        raise UserError(f"--sweep={path} takes no argument: remove {argument!r}")
    try:
        sweep = module.get_sweep(argument[1:]) if takes_one else module.get_sweep()
    except (KeyError, ValueError) as error:
        if not takes_one:
            raise
        raise UserError(
            f"--sweep={asked}: {path}:ARGUMENT is how this sweep is called, and "
            f"{argument[1:]!r} is not understood ({error!r}); its head says:\n"
            f"{(module.__doc__ or '').strip()}"
        ) from error
    check_sweep(sweep, path)
    return sweep


def check_sweep(sweep: Sweep, path: str) -> None:
    """UserError for a sweep without trials, or of what there is not."""
    for number, stage in enumerate(itertools.chain(*sweep.rounds)):
        if stage.command not in (*SCRIPTS, "run"):
            raise UserError(
                f"stage {number} of {path} has the command {stage.command!r}: it is "
                f"one of {', '.join(SCRIPTS)}, or run"
            )
        if not stage.variants:
            raise UserError(
                f"stage {number} of {path} has no variants: ({{}},) is the config alone"
            )
    if not all(sweep.rounds) or not sweep.rounds or not sweep.seeds:
        raise UserError(f"{path} has no {'seeds' if sweep.stages else 'stages'}")
    for metric in sweep.metrics:
        if metric.partition("/")[0] not in ("eval", "test", "score"):
            raise UserError(
                f"{path} compares {metric!r}: metrics are called eval/..., test/... or "
                "score/..."
            )
    if sweep.budget and parse_budget(sweep.budget) is None:
        raise UserError(
            f"budget={sweep.budget!r} of {path} is none: write it as '1500 steps', "
            "'10M tokens', '3e13 flops' or '600 seconds'"
        )


def parse_budget(text: str) -> tuple[float, str] | None:
    """(1500.0, "steps")"""
    found = re.fullmatch(f"{NUMBER} ?([kKMBT]?) ?({'|'.join(BUDGETS)})", text)
    return (float(found[1]) * SCALES[found[2]], found[3]) if found else None


def make_trials(sweep: Sweep, workdir: Path) -> list[Trial]:
    """All trials, those of a stage after those that they start from.

    Raises:
      UserError: two trials of one name.
    """
    trials: list[Trial] = []
    before: list[Trial | None] = [None]
    for number, stages in enumerate(sweep.rounds):
        made = []
        for after, stage in itertools.product(before, stages):
            names = variant_names(stage, len(stages) > 1)
            for name, overrides in zip(names, stage.variants, strict=True):
                seeds = sweep.seeds if after is None else (after.seed,)
                made += [
                    make_trial(stage, number, name, seed, overrides, after, workdir)
                    for seed in seeds
                ]
        folders = [str(one.folder) for one in made if one.stage.command != "run"]
        if twice := {folder for folder in folders if folders.count(folder) > 1}:
            raise UserError(f"two trials have one name: {min(twice)}")
        trials += made
        before = [*made]
    return trials


def make_trial(
    stage: Stage,
    number: int,
    name: str,
    seed: int,
    overrides: Overrides,
    after: Trial | None,
    workdir: Path,
) -> Trial:
    start = {}
    if after is not None:
        start = {"init_from": str(after.folder)}
        name = f"{after.variant}, {name}"
    folder = workdir / f"{number}_{stage.command}" / name.replace(", ", "_") / f"{seed}"
    if stage.command == "run":  # that there is
        folder = Path(stage.config)
    given = {**overrides, **start, "seed": seed}
    return Trial(stage, number, name, seed, folder, given, after)


def variant_names(stage: Stage, has_others: bool) -> list[str]:
    """learning_rate=0.001, ...: what differs, "base" where nothing does; the stage's
    own name before it where others stand beside it."""
    settings = {*itertools.chain(*stage.variants)}
    shared = {
        name
        for name in settings
        if all(name in own for own in stage.variants)
        and len({str(own[name]) for own in stage.variants}) == 1
    }
    names = []
    for overrides in stage.variants:
        own = {name: overrides[name] for name in overrides if name not in shared}
        words = [stage.name] * has_others
        words += [f"{name.split('.')[-1]}={value}" for name, value in own.items()]
        names.append(re.sub(r"[^\w=.,+ -]", "-", ", ".join(words)) or "base")
    return names


def check(trial: Trial) -> None:
    """UserError where a trial's line is wrong, before anything runs."""
    try:
        if trial.stage.command == "run":
            if not (trial.folder / "config.json").exists():
                raise UserError(f"{trial.folder} is no run folder: no config.json")
        elif trial.stage.command == "score":
            import score  # and with it jax

            score.read_arguments(trial.line())
        else:
            configs.check(read_config(trial))
    except UserError as error:
        raise UserError(f"trial {trial.variant!r}: {error}") from error


def check_metrics(sweep: Sweep, trials: list[Trial]) -> None:
    """UserError where no trial of the last stages can have a metric."""
    last = [trial for trial in trials if trial.round == len(sweep.rounds) - 1]
    for metric in sweep.metrics:
        split, _, name = metric.partition("/")
        if not any(can_have(trial, split, name) for trial in last):
            raise UserError(
                f"no trial of the last stage can have the metric {metric!r}: score/... "
                "needs a stage that scores, test/... one that fine-tunes with "
                "data.test, and of a task there are "
                + "; ".join(f"{kind}: {', '.join(own)}" for kind, own in of_tasks())
            )


def can_have(trial: Trial, split: str, name: str) -> bool:
    if trial.stage.command == "score":
        return split == "score"
    if trial.stage.command == "finetune":
        config = read_config(trial)
        known = name.endswith("loss") or name in dict(of_tasks())[config.task.kind]
        return known and split in (("eval", "test") if config.data.test else ("eval",))
    return split == "eval" and all(name not in own for _, own in of_tasks())


def of_tasks() -> list[tuple[str, tuple[str, ...]]]:
    """Kinds of task, and the names of their metrics."""
    return [(name, kind.metrics) for name, kind in KINDS.items()]


def read_config(trial: Trial) -> Any:
    return configs.parse(trial.line(), SCRIPTS[trial.stage.command]).config


# Budgets.


def budgeted(sweep: Sweep, trial: Trial, workdir: Path) -> Trial:
    """The trial with the budget as its number of updates, which the folder keeps."""
    if not sweep.budget or trial.stage.command != "train":
        return trial
    steps = steps_of(sweep.budget, trial, workdir)
    given = trial.overrides | {"optim.total_steps": steps}
    if "optim.eval_every_steps" not in given:
        given["optim.eval_every_steps"] = max(1, steps // 5)
    if "optim.warmup_steps" not in given:
        given["optim.warmup_steps"] = max(1, steps // 20)
    return dataclasses.replace(trial, overrides=given)


def steps_of(budget: str, trial: Trial, workdir: Path) -> int:
    """Updates that a trial's budget allows; what is measured is so once a variant."""
    amount, unit = parse_budget(budget) or (0, "")
    config = read_config(trial)
    tokens = config.data.batch_size * config.data.sequence_length
    if unit == "steps":
        return round(amount)
    if unit == "tokens":
        return max(1, round(amount / tokens))
    if unit == "flops":
        return max(1, round(amount / update_flops(trial)))
    path = workdir / "timing" / f"{trial.variant.replace(', ', '_')}.json"
    if not path.exists():
        seconds = tokens / tokens_per_second(trial, workdir)
        steps = max(1, int(amount / seconds))
        found = {"budget": budget, "seconds_an_update": seconds, "steps": steps}
        path.parent.mkdir(parents=True, exist_ok=True)
        cache.write_whole(path, json.dumps(found).encode())
    found = json.loads(path.read_text())
    if found["budget"] != budget:
        raise UserError(
            f"the trials in {workdir} have a budget of {found['budget']!r}, and the "
            f"sweep now one of {budget!r}: give another --workdir"
        )
    return found["steps"]


def tokens_per_second(trial: Trial, workdir: Path) -> float:
    """Of the first updates, without compiling and evaluating."""
    folder = workdir / "timing" / trial.variant.replace(", ", "_")
    given = {"total_steps": TIMED_STEPS, "eval_every_steps": TIMED_STEPS}
    given |= {"warmup_steps": 1}
    overrides = {f"optim.{name}": value for name, value in given.items()}
    overrides |= {"run.log_every_steps": TIMED_AT_ONCE, "data.heldout_tokens": 1}
    timed = dataclasses.replace(
        trial, overrides=trial.overrides | overrides, folder=folder
    )
    execute(timed)
    rows = read_metrics(folder / "metrics.jsonl")
    rows = [row for row in rows if "train/loss" in row]
    even = [row for row in rows if row["step"] % TIMED_AT_ONCE == 0]
    return statistics.median(row["train/tokens_per_second"] for row in even[1:])


def update_flops(trial: Trial) -> float:
    """Of one update of a trial that pre-trains."""
    import models  # and with it jax
    import train
    from training import optimizers, runs

    config = read_config(trial)
    model = models.build(config.model)
    params = runs.shapes_of(model, models.empty_row(config.model))
    return train.flops_of_an_update(config, optimizers.parameter_sizes(params))


def product_rate() -> float:
    """FLOPs a second of products of float32 matrices here."""
    import jax
    import jax.numpy as jnp

    size, times = 1024, []
    product, one = jax.jit(jnp.dot), jnp.ones((size, size))
    for _ in range(6):  # the first one compiles
        began = time.perf_counter()
        product(one, one).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * size**3 * jax.device_count() / statistics.median(times[1:])


def listed(
    sweep: Sweep, trials: list[Trial], rate: Callable[[], float] | None = None
) -> str:
    """The trials, and what they cost as far as that is known; with a `rate`, FLOPs a
    second, the minutes that they take at least. (Measuring one takes the devices, which
    trials in processes of their own need.)"""
    trials = [trial for trial in trials if trial.stage.command != "run"]
    lines, total = [], 0.0
    pretraining = [trial for trial in trials if trial.stage.command == "train"]
    for trial in trials:
        cost = ""
        if trial in pretraining:
            is_timed = not sweep.budget or "optim.total_steps" in trial.overrides
            steps = read_config(trial).optim.total_steps
            if not is_timed:
                cost = f"budget {sweep.budget}"
            elif isinstance(steps, int):  # and no share of, or tokens
                flops = steps * update_flops(trial)
                cost, total = f"{steps:,} updates, {flops:.1e} FLOPs", total + flops
        lines.append(f"{trial.outcome()['status']:6} {trial.folder}  {cost}".rstrip())
    told = f"{len(trials)} trials"
    if total:
        told += f", {total:.1e} FLOPs of pre-training"
    if total and rate is not None:
        told += f", at least {total / rate() / 60:.1f} minutes at this machine's rate"
        told += " of matrix products"
    if sweep.budget.endswith("seconds"):
        amount, _ = parse_budget(sweep.budget) or (0, "")
        count = len(pretraining)
        told += f", about {amount * count / 60:.0f} minutes of pre-training updates"
    return "\n".join([*lines, told])


# Running.


def run_all(trials: list[Trial], retry: bool, processes: int) -> int:
    """Runs what is open, round by round; the exit status of one that was stopped."""
    for _, of_round in itertools.groupby(trials, lambda trial: trial.round):
        mine = [trial for trial in of_round if is_open(trial, retry)]
        if processes:
            with ThreadPoolExecutor(processes) as pool:
                statuses = [*pool.map(run_apart, mine)]
            if stopped := [status for status in statuses if status >= 128]:
                return stopped[0]
            continue
        for number, trial in enumerate(mine, 1):
            print(f"\ntrial {number} of {len(mine)}: {trial.folder}", flush=True)
            if status := run_here(trial):
                return status
    return 0


def is_open(trial: Trial, retry: bool) -> bool:
    status = trial.outcome()["status"]
    return status == "open" or (retry and status == "failed")


def needs_failed(trial: Trial) -> str:
    """Why a trial cannot begin; "" where it can."""
    if trial.after is None or trial.after.outcome()["status"] == "done":
        return ""
    return f"it starts from {trial.after.folder}, which is not done"


def run_here(trial: Trial) -> int:
    """Runs a trial, and keeps how it ended; not 0 where a signal stopped it."""
    error = needs_failed(trial)
    if not error:
        try:
            if status := execute(trial):
                return status
        except UserError as failure:
            error = str(failure)
        except Exception as failure:  # one trial's fault is not that of the others
            traceback.print_exc()
            error = repr(failure)
    keep_outcome(trial, error)
    return 0


def execute(trial: Trial) -> int:
    """The exit status of the trial's run, in this process."""
    if trial.stage.command == "score":
        import score

        found = {name: one.value for name, one in score.score(trial.line()[1:]).items()}
        trial.folder.mkdir(parents=True, exist_ok=True)
        results = json.dumps({"splits": {"score": found}}, indent=2)
        cache.write_whole(trial.folder / "results.json", results.encode())
        return 0
    import finetune
    import train

    runs = {"train": train.train, "finetune": finetune.finetune}
    return runs[trial.stage.command](read_config(trial), trial.folder).exit_status


def run_apart(trial: Trial) -> int:
    """As `run_here`, in a process of its own, whose output is in log.txt."""
    error, status = needs_failed(trial), 0
    if not error:
        trial.folder.mkdir(parents=True, exist_ok=True)
        line = [*trial.line(), f"--workdir={trial.folder}"]
        root = Path(__file__).parent
        with (trial.folder / "log.txt").open("a") as log:
            status = subprocess.run(
                [sys.executable, root / line[0], *line[1:]],
                stdout=log,
                stderr=log,
                check=False,
            ).returncode
        if status < 0 or status >= 128:
            return abs(status) if status > 0 else 128 - status
        error = f"exit status {status}: see {trial.folder / 'log.txt'}" * bool(status)
    print(f"{'failed' if error else 'done'}: {trial.folder}", flush=True)
    keep_outcome(trial, error)
    return 0


def keep_outcome(trial: Trial, error: str) -> None:
    """trial.json of the run folder."""
    found = {"status": "failed", "error": error} if error else {"status": "done"}
    trial.folder.mkdir(parents=True, exist_ok=True)
    cache.write_whole(trial.folder / "trial.json", json.dumps(found).encode())


# Comparing.


def report(sweep: Sweep, trials: list[Trial], workdir: Path) -> int:
    """report.md, .csv, .html and pictures, of the trials of the last stage; the exit
    status, 1 where some trial failed.

    Raises:
      UserError: a metric that no trial has.
    """
    outcomes = {str(trial.folder): trial.outcome() for trial in trials}
    failed = {
        folder: found["error"]
        for folder, found in outcomes.items()
        if found["status"] == "failed"
    }
    if runs := finished(sweep, trials):
        swept = {trial.variant: trial.overrides for trial in trials}
        comparison.write_report(runs, sweep.metrics, swept, workdir, failed)
    for folder, error in failed.items():
        print(f"FAILED {folder}: {error}")
    if failed:
        print("--retry runs those that failed again")
    return 1 if failed else 0


def finished(sweep: Sweep, trials: list[Trial]) -> list[comparison.Run]:
    """The runs of the last stage that are done."""
    return [
        comparison.Run(
            trial.variant,
            trial.seed,
            trial.folder,
            " ".join(trial.line()),
            "" if trial.after is None else trial.stage.name,
            "" if trial.after is None else trial.after.variant,
        )
        for trial in trials
        if trial.round == len(sweep.rounds) - 1 and trial.outcome()["status"] == "done"
    ]


if __name__ == "__main__":
    errors.run(main)
