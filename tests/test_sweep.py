"""Sweeps: trials from a file, run once and resumed, and what their report says."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import configs
import sweep
from configs.sweeps import Stage, Sweep, chain, over, product, zipped
from errors import UserError
from training import comparison
from training.comparison import Run

ROOT = Path(__file__).parents[1]

RATES = over("optim.learning_rate", (0.01, 0.001))
FILE = """
from configs.sweeps import Stage, Sweep, over

def get_sweep():
    small = {{"data.corpus": "{corpus}", "data.heldout_fraction": 0.3,
              "data.tokenizer.vocab_size": 300, "model.num_layers": 1}}
    rates = over("optim.learning_rate", (0.01, {second}))
    task = {{"data.train": "{task}", "optim.epochs": 1.0, "task.metric": "accuracy"}}
    return Sweep(
        stages=(
            Stage("train", "configs/gpt_mini.py:tiny", tuple(r | small for r in rates)),
            Stage("finetune", "configs/finetune/topic.py:tiny", (task,)),
        ),
        seeds=(0,),
        metrics=("eval/accuracy",),
        budget="{budget}",
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, patch = tmp_path_factory.mktemp("sweep"), pytest.MonkeyPatch()
    patch.setenv("FOREWORD_CACHE", str(folder / "cache"))
    patch.chdir(Path(__file__).parents[1])
    words = ["red green blue", "one two three", "sun moon star"]
    text = "\n\n".join(f"{words[i % 3]} {words[i % 2]} number {i}" for i in range(90))
    (folder / "corpus.txt").write_text(text)
    lines = [f"{words[i % 3]} {i}\t{'abc'[i % 3]}" for i in range(60)]
    (folder / "task.tsv").write_text("\n".join(["text\tlabel", *lines]))
    yield folder
    patch.undo()


def write(folder, name="sweep.py", budget="6 steps", second=0.001):
    path = folder / name
    made = {"corpus": folder / "corpus.txt", "task": folder / "task.tsv"}
    path.write_text(FILE.format(**made, budget=budget, second=second))
    return path


def run(path, workdir, *more):
    return sweep.main(["sweep.py", f"--sweep={path}", f"--workdir={workdir}", *more])


# What a file says


def test_variants_literal():
    layers = over("model.num_layers", (1, 2))
    assert len(product(RATES, layers)) == 4
    assert product(RATES, layers)[1] == {
        "optim.learning_rate": 0.01,
        "model.num_layers": 2,
    }
    assert zipped(RATES, layers) == (
        {"optim.learning_rate": 0.01, "model.num_layers": 1},
        {"optim.learning_rate": 0.001, "model.num_layers": 2},
    )
    assert chain([{}], layers) == ({}, *layers)


def test_trials_are_named_by_what_differs():
    variants = product(RATES, [{"data.corpus": "b/c"}])
    stage = Stage("train", "configs/a.py:tiny", variants)
    assert sweep.variant_names(stage, False) == [
        "learning_rate=0.01",
        "learning_rate=0.001",
    ]
    one = stage._replace(variants=({"data.corpus": "b/c"},))
    assert sweep.variant_names(one, False) == ["base"]
    assert sweep.variant_names(one, True) == ["a"]
    two = stage._replace(variants=({"data.corpus": "b/c"}, {}), label="mine")
    assert sweep.variant_names(two, True) == ["mine, corpus=b-c", "mine"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1500 steps", (1500, "steps")),
        ("10M tokens", (1e7, "tokens")),
        ("3e13 flops", (3e13, "flops")),
        ("600 seconds", (600, "seconds")),
        ("10 minutes", None),
        ("steps", None),
    ],
)
def test_budgets_literal(text, found):
    assert sweep.parse_budget(text) == found


def test_later_stages_start_from_each_run_before(tmp_path):
    stages = (
        Stage("train", "a.py", ({}, {"optim.learning_rate": 0.1})),
        Stage("finetune", "b.py", ({}, {"optim.epochs": 2.0})),
    )
    trials = sweep.make_trials(Sweep(stages, (0, 7), ("eval/f1",), ""), tmp_path)
    assert len(trials) == 4 + 8
    last = trials[-1]
    assert last.variant == "learning_rate=0.1, epochs=2.0" and last.seed == 7
    assert last.after is trials[3]
    assert last.overrides == {
        "optim.epochs": 2.0,
        "init_from": str(trials[3].folder),
        "seed": 7,
    }
    assert str(last.folder.relative_to(tmp_path)) == (
        "1_finetune/learning_rate=0.1_epochs=2.0/7"
    )


def test_stages_side_by_side_each_start_from_all_before(tmp_path):
    models = (Stage("train", "a.py", ({},)), Stage("run", "runs/b", ({},)))
    uses = (Stage("score", "pairs", ({},)), Stage("finetune", "c.py:x", ({},)))
    trials = sweep.make_trials(Sweep((models, uses), (0,), (), ""), tmp_path)
    assert trials[1].folder == Path("runs/b") and trials[1].outcome() == {
        "status": "done"
    }
    folders = [str(trial.folder.relative_to(tmp_path)) for trial in trials[2:]]
    assert folders == [
        "1_score/a_pairs/0",
        "1_finetune/a_c/0",
        "1_score/b_pairs/0",
        "1_finetune/b_c/0",
    ]
    assert [trial.after for trial in trials[2:]] == [trials[0]] * 2 + [trials[1]] * 2


def test_a_sweep_that_takes_an_argument(folder):
    path = write(folder, "asked.py")
    with pytest.raises(UserError, match=r"takes no argument: remove ':some'"):
        sweep.read_sweep(f"{path}:some")
    text = path.read_text().replace("get_sweep()", "get_sweep(budget)")
    text = text.replace('"6 steps"', 'f"{int(budget)} steps"')
    path.write_text(f'"""Give a number."""\n{text}')
    assert sweep.read_sweep(f"{path}:9").budget == "9 steps"
    for argument in ("", ":nine"):
        with pytest.raises(UserError, match=r"(?s)asked.py:ARG.*Give a number\."):
            sweep.read_sweep(f"{path}{argument}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": ()}, "no stages"),
        ({"seeds": ()}, "no seeds"),
        ({"metrics": ("accuracy",)}, "compares 'accuracy': metrics are called eval/"),
        ({"budget": "3 days"}, "budget='3 days' .* write it as '1500 steps'"),
        ({"stages": (Stage("dream", "a.py", ({},)),)}, "command 'dream'.* train, fine"),
        ({"stages": (Stage("train", "a.py", ()),)}, "no variants"),
    ],
)
def test_sweeps_without_sense_are_refused(tmp_path, change, message):
    path, asked = tmp_path / "x.py", Sweep((), (0,), ("eval/loss",), "")
    asked = asked._replace(stages=(Stage("train", "a.py", ({},)),))._replace(**change)
    body = f"def get_sweep():\n    return {asked!r}"
    path.write_text(f"from configs.sweeps import Stage, Sweep\n{body}\n")
    with pytest.raises(UserError, match=message):
        sweep.read_sweep(str(path))


def test_tasks_have_200_labels_or_all_of_them():
    path = str(ROOT / "configs/sweeps/tasks.py")
    asked = sweep.read_sweep(f"{path}:DATA,sick:all+sick+xquad,RUN")
    every, few, last = (stage.variants[0] for stage in asked.rounds[1])
    sizes = ("train_examples", "batch_size")
    assert [every[f"data.{size}"] for size in sizes] == [0, 32]
    assert [few[f"data.{size}"] for size in sizes] == [200, 16]
    assert every["optim.epochs"] < few["optim.epochs"]
    assert every["data.test"] == "DATA/entailment/sick_test.tsv"
    assert "data.test" not in last  # XQuAD has two files
    with pytest.raises(UserError, match=r"'most' labels: write all, or nothing"):
        sweep.read_sweep(f"{path}:DATA,sick:most,RUN")


def test_a_budget_of_seconds_is_measured_once(folder, tmp_path, monkeypatch):
    asked = sweep.read_sweep(str(write(folder, "timed.py", budget="60 seconds")))
    trial, rates = sweep.make_trials(asked, tmp_path)[0], [512.0, 1.0]
    monkeypatch.setattr(sweep, "tokens_per_second", lambda *_: rates.pop(0))
    for _ in range(2):  # rows of 8 x 32: two updates a second
        found = sweep.budgeted(asked, trial, tmp_path).overrides
        assert found["optim.total_steps"] == 120
        assert found["optim.warmup_steps"] == 6
    asked = asked._replace(budget="30 seconds")
    with pytest.raises(UserError, match=r"budget of '60 seconds', .* '30 seconds'"):
        sweep.budgeted(asked, trial, tmp_path)


@pytest.mark.parametrize(
    ("metric", "stages"),
    [
        ("test/accuracy", 2),  # it has no test file
        ("eval/entity_f1", 2),
        ("score/accuracy", 2),
        ("eval/accuracy", 1),
        ("test/loss", 1),
    ],
)
def test_metrics_that_no_trial_can_have_are_refused(folder, tmp_path, metric, stages):
    asked = sweep.read_sweep(str(write(folder, "metric.py")))
    asked = asked._replace(stages=asked.stages[:stages], metrics=(metric,))
    trials = sweep.make_trials(asked, tmp_path)
    with pytest.raises(UserError, match=rf"have the metric '{metric}'.*tagging: ent"):
        sweep.check_metrics(asked, trials)
    good = ("eval/masked_loss",) if stages == 1 else ("eval/macro_f1", "eval/loss")
    sweep.check_metrics(asked._replace(metrics=good), trials)


def test_nothing_starts_where_a_trial_is_wrong(folder, tmp_path):
    path = write(folder, "wrong.py", second="-1.0")
    with pytest.raises(UserError, match=r"trial 'learning_rate=-1.0.*must be"):
        run(path, tmp_path / "out")
    path.write_text(path.read_text().replace("optim.learning_rate", "optim.rate"))
    with pytest.raises(UserError, match=r"trial .*optim.rate is no setting"):
        run(path, tmp_path / "out")
    path = write(folder, "twice.py", second="0.01")
    with pytest.raises(UserError, match="two trials have one name"):
        run(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no such file"):
        run(tmp_path / "none.py", tmp_path / "out")


# Running


def test_a_sweep_runs_resumes_and_reports(folder, capsys, monkeypatch):
    path, workdir = write(folder), folder / "out"
    assert run(path, workdir, "--list") == 0
    shown = capsys.readouterr().out
    assert shown.count("6 updates, ") == 2 and "4 trials, " in shown
    assert not workdir.exists()
    assert run(path, workdir) == 0
    shown = capsys.readouterr().out
    assert "6 updates" in shown and "FLOPs" in shown
    trials = sorted(workdir.glob("*/*/0/trial.json"))
    assert len(trials) == 4
    assert {json.loads(one.read_text())["status"] for one in trials} == {"done"}
    pretrained = [one.parent for one in trials if "0_train" in str(one)]
    for one in pretrained:
        assert configs.read_config(one).optim.total_steps == 6
        assert comparison.curve(one, "eval/loss")[-1][:2] == (6, 6 * 8 * 32)
    page = (workdir / "report.html").read_text()
    assert "data:image/png" in page and "1_finetune" in page
    table = (workdir / "report.md").read_text()
    assert "| learning_rate=0.01 |" in table and "## topic: eval/accuracy" in table
    assert "| by counting: TF-IDF |" in table
    assert len((workdir / "report.csv").read_text().splitlines()) == 3

    def never(*_):
        raise AssertionError("done already")

    monkeypatch.setattr(sweep, "execute", never)
    assert run(path, workdir) == 0
    # Killed before it could say that it is done: the run itself resumes.
    monkeypatch.undo()
    (pretrained[0] / "trial.json").unlink()
    assert run(path, workdir) == 0
    assert f"trial 1 of 1: {pretrained[0]}" in capsys.readouterr().out
    assert (
        sweep.main(
            [
                "sweep.py",
                "compare",
                *map(str, pretrained),
                f"--output={folder / 'compared'}",
            ]
        )
        == 0
    )
    assert (folder / "compared" / "eval_loss.png").stat().st_size > 0


def test_what_failed_is_told_and_retried(folder, capsys, monkeypatch):
    path, workdir = write(folder, "failing.py"), folder / "failing"
    failing = {"0.001"}

    def execute(trial):
        if any(word in str(trial.folder) for word in failing):
            raise UserError("the disk is full of eels")
        return 0

    monkeypatch.setattr(sweep, "execute", execute)
    monkeypatch.setattr(sweep.comparison, "write_report", lambda *_: None)
    assert run(path, workdir) == 1
    shown = capsys.readouterr().out
    assert shown.count("FAILED") == 2 and "full of eels" in shown
    assert "it starts from" in shown and "--retry" in shown
    failing.clear()
    assert run(path, workdir) == 1 and "FAILED" in capsys.readouterr().out
    assert run(path, workdir, "--retry") == 0
    assert "FAILED" not in capsys.readouterr().out


def test_killed_half_way_and_in_processes_of_their_own(folder):
    """A sweep that was killed in a trial goes on to where an undisturbed one ends, and
    two trials at once come to the same."""
    path, root = folder / "killed.py", Path(__file__).parents[1]
    text = write(folder, "killed.py", budget="12 steps").read_text()
    text = text.replace("small = {", 'small = {"run.log_every_steps": 1, ')
    text = re.sub(r' +Stage\("finetune".*\n', "", text)
    path.write_text(text.replace("eval/accuracy", "eval/loss"))
    line = [sys.executable, str(root / "sweep.py"), f"--sweep={path}"]
    killed, apart = folder / "killed", folder / "apart"
    process = subprocess.Popen(
        [*line, f"--workdir={killed}"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    for said in process.stdout:
        if said.startswith("step 3/12"):
            process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not [*killed.glob("**/trial.json")]
    for workdir, more in ((killed, []), (apart, ["--processes=2"])):
        done = subprocess.run(
            [*line, f"--workdir={workdir}", *more],
            cwd=root,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert (killed / "report.csv").read_text().replace("killed", "apart") == (
        apart / "report.csv"
    ).read_text()
    assert "step 12/12" in next(apart.glob("0_train/*/0/log.txt")).read_text()


# Comparing


def some_runs(tmp_path, values):
    """Runs of variants, by seed, whose last evaluation has the value."""
    runs = []
    for variant, by_seed in values.items():
        for seed, value in by_seed.items():
            folder = tmp_path / f"{variant}_{seed}"
            folder.mkdir()
            data = {"batch_size": 2, "sequence_length": 5}
            (folder / "config.json").write_text(json.dumps({"data": data}))
            rows = [
                {"step": 10, "train/tokens_per_second": 50.0},
                {"step": 10, "eval/loss": 9.0},
                {"step": 20, "train/tokens_per_second": 100.0},
                {"step": 20, "eval/loss": value},
            ]
            lines = "\n".join(map(json.dumps, rows))
            (folder / "metrics.jsonl").write_text(lines)
            runs.append(Run(variant, seed, folder, "train.py"))
    return runs


def test_summaries_literal(tmp_path):
    values = {"base": {0: 3.0, 1: 5.0}, "other": {0: 2.0, 1: 4.5, 2: 7.0}}
    runs = some_runs(tmp_path, values)
    found = comparison.summaries(runs, "eval/loss")
    assert found["base"].values == [3.0, 5.0] and not found["base"].differences
    assert found["other"].differences == [-1.0, -0.5]  # on the same seeds alone
    low, high = found["base"].interval
    assert 3.0 <= low < high <= 5.0
    assert comparison.interval([1.0]) is None
    (base, other) = comparison.table(found)
    assert base[:5] == ["base", "2", "4", "4", "1.414"] and base[6] == ""
    assert other[1:4] == ["3", "4.5", "4.5"] and other[6].startswith("-0.75 (-1 to")
    # 10 updates of 10 tokens at 50 a second, then 10 at 100
    assert comparison.curve(runs[0].folder, "eval/loss") == [
        (10, 100, 2.0, 9.0),
        (20, 200, 3.0, 3.0),
    ]
    with pytest.raises(UserError, match=r"'eval/f1': there are eval/loss"):
        comparison.summaries(runs, "eval/f1")
    swept = {v: {"optim.learning_rate": x} for v, x in zip(values, (1, 2), strict=True)}
    assert comparison.draw_swept(found, swept, "eval/loss").startswith(b"\x89PNG")
    flags = {v: {"load": x} for v, x in zip(values, (True, False), strict=True)}
    assert comparison.draw_swept(found, flags, "eval/loss") is None
    swept["base"]["optim.b1"] = 0.5
    assert comparison.draw_swept(found, swept, "eval/loss") is None
    assert comparison.draw_swept(found, {v: {} for v in values}, "eval/loss") is None


def test_the_base_is_the_first_that_started_alike(tmp_path):
    """One that is alone in where it started is compared with the first of all."""
    starts = {"base": "a", "other": "a", "third": "b", "fourth": "b", "last": "c"}
    runs = some_runs(tmp_path, {name: {0: float(i)} for i, name in enumerate(starts)})
    runs = [run._replace(start=starts[run.variant]) for run in runs]
    found = comparison.summaries(runs, "eval/loss")
    less = {name: summary.differences for name, summary in found.items()}
    assert less == {"base": [], "other": [1], "third": [], "fourth": [1], "last": [4]}


def test_a_report_has_a_table_for_each_task_with_its_lines(tmp_path, capsys):
    """And what failed; a curve is drawn where there is one."""
    runs = some_runs(tmp_path, {"x, one": {0: 1.0}, "x, two": {0: 2.0}})
    runs = [run._replace(table=run.variant[3:], start="x") for run in runs]
    lines = {"eval": {"TF-IDF": {"loss": 0.5, "f1": 0.1}}}
    results = {"splits": {"eval": {"loss": 0.7}}, "lines": lines, "failed": True}
    (runs[1].folder / "results.json").write_text(json.dumps(results))
    (runs[0].folder / "lines.json").write_text(
        json.dumps([{"name": "unigram", "metric": "loss", "value": 3.0}])
    )
    swept = {run.variant: {} for run in runs}
    failed = {"out/<three>": "no disk"}
    comparison.write_report(runs, ("eval/loss",), swept, tmp_path / "out", failed)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| x | 1 (1 constant) | 0.7 |" in text
    text = text.replace(" (1 constant)", "")
    assert re.findall(r"^## (.*)|^\| (.*?) \| 1 \| (.*?) ", text, re.M) == [
        ("one: eval/loss", "", ""),
        ("", "x", "1"),
        ("", "by counting: unigram", "3"),
        ("two: eval/loss", "", ""),
        ("", "x", "0.7"),
        ("", "by counting: TF-IDF", "0.5"),
        ("Failed", "", ""),
        ("Runs", "", ""),
    ]
    assert "- out/<three>: no disk" in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<li>out/&lt;three&gt;: no disk</li>" in page
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "one_eval_loss.png",
        "two_eval_loss.png",
    }
    (runs[0].folder / "lines.json").write_text(
        json.dumps([{"name": "unigram", "metric": "loss", "value": 3.0}])
    )
    alike = [runs[0], runs[0]._replace(variant="y, one")]
    assert [*comparison.counted(alike, "eval/loss")] == ["by counting: unigram"]
    other = alike[1]._replace(folder=tmp_path / "other")
    other.folder.mkdir()
    text = (runs[0].folder / "lines.json").read_text()
    (other.folder / "lines.json").write_text(text.replace("3.0", "4.0"))
    found = comparison.counted([runs[0], other], "eval/loss")
    assert {name: summary.values for name, summary in found.items()} == {
        "by counting: unigram, x": [3.0],
        "by counting: unigram, y": [4.0],
    }
    scored = {"splits": {"score": {"accuracy": 0.6, "5-gram/accuracy": 0.5}}}
    (runs[0].folder / "lines.json").unlink()
    (runs[0].folder / "results.json").write_text(json.dumps(scored))
    assert comparison.lines_of(runs[0].folder, "score/accuracy") == {"5-gram": 0.5}
    assert comparison.lines_of(runs[0].folder, "eval/accuracy") == {}


def test_the_page_is_opened(tmp_path, opened):
    """By itself: its picture is in it, and nothing is asked of a network."""
    runs, page = some_runs(tmp_path, {"a": {0: 1.0}}), tmp_path / "out" / "report.html"
    comparison.write_report(runs, ("eval/loss",), {"a": {}}, tmp_path / "out", {})
    assert "http" not in page.read_text()
    script = "document.title = [...document.images].map(x => x.naturalWidth).join()"
    page.write_text(f"{page.read_text()}<script>onload = () => {script}</script>")
    shown = opened(page)
    assert int(re.search(r"<title>(\d+)</title>", shown)[1]) > 500
    assert shown.count("<td>") == 7


def test_runs_that_share_nothing_are_not_compared(tmp_path):
    (one,) = some_runs(tmp_path, {"a": {0: 1.0}})
    with pytest.raises(UserError, match="not a run folder"):
        comparison.compare([one.folder, tmp_path], tmp_path / "out")
