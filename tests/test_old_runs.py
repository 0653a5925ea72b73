"""Run folders of an older version, and of a version before a setting, open; they resume
if their examples are drawn as today.

golden/old_runs.tar.gz holds runs that were begun by the code before the settings had a
table, each stopped by SIGTERM in the middle, with their texts and tokenizers, what
that code predicted from them, and the curves of the same runs which it finished.
"""

import json
import os
import tarfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

import configs
import finetune
import predict
import train
from configs import bert_mini, gpt_mini
from configs.finetune import squad
from errors import UserError
from training import loop
from training.checkpoints import load_params
from training.metrics import read_metrics
from use import open_run

GOLDEN = Path(__file__).parent / "golden" / "old_runs.tar.gz"
RUNS = {"bert": train.train, "gpt": train.train, "topic": finetune.finetune}
BEST = {"bert": 120, "gpt": 80, "topic": 16}


@pytest.fixture
def expected(tmp_path, monkeypatch):
    """The working folder has the runs; what the code before made of them."""
    with tarfile.open(GOLDEN) as archive:
        archive.extractall(tmp_path, filter="data")
    os.utime(tmp_path / "corpus.txt", (1_700_000_000,) * 2)  # as the shards' key has it
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    return json.loads((tmp_path / "expected.json").read_text())


def said(capsys, *arguments):
    capsys.readouterr()
    assert predict.main(["predict.py", *arguments]) == 0
    return capsys.readouterr().out


def test_old_runs_predict_the_same(expected, capsys):
    before = expected["predict"]
    text = "--text=In the morning the baker [MASK] a letter."
    assert said(capsys, "fill_mask", "--workdir=bert", text) == before["bert"]
    drawn = ("--prompt=At noon", "--max_tokens=12", "--temperature=0")
    assert said(capsys, "generate", "--workdir=gpt", *drawn) == before["gpt"]
    text = "--text=my sister sold two small boats near the river"
    line = said(capsys, "classify", "--workdir=topic", text, "--format=jsonl")
    now, then = json.loads(line), json.loads(before["topic"])
    assert now.pop("probabilities") == pytest.approx(
        then.pop("probabilities"), abs=1e-5
    )
    assert now == then


@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_runs_whose_examples_were_drawn_otherwise_are_not_resumed(name, expected):
    folder = Path(name)
    before = {path: path.stat().st_mtime for path in folder.rglob("*")}
    message = f"the run in {name} was begun by .*cannot be resumed.*another --workdir"
    with pytest.raises(UserError, match=message):
        RUNS[name](configs.read_config(folder), folder)
    assert load_params(folder)[1] == BEST[name]
    kept = [path for path in before if "checkpoints" in path.parts]
    assert kept and all(path.stat().st_mtime == before[path] for path in kept)


def test_fine_tuning_whose_masks_were_drawn_otherwise_is_not_resumed(expected):
    digests = json.loads(Path("topic", "data.json").read_text())
    made = SimpleNamespace(digests=lambda: digests)
    for draws_masks in (True, False):
        auxiliary = SimpleNamespace(draws=draws_masks)
        tuning = SimpleNamespace(splits=made, auxiliary=auxiliary)
        with pytest.raises(UserError) if draws_masks else nullcontext():
            finetune.record_origin(Path("topic"), tuning)


def test_old_fine_tuning_resumes_to_the_same_end(expected):
    folder = Path("topic")
    assert load_params(folder)[1] == BEST["topic"]
    config = configs.read_config(folder)
    result = finetune.finetune(config, folder)
    curves, rows = expected["curves"]["topic"], read_metrics(folder / "metrics.jsonl")
    assert result.step == curves["eval/loss"][-1][0] and result.signal is None
    for key, curve in curves.items():
        found = {row["step"]: row[key] for row in rows if key in row}
        assert found == pytest.approx(dict(curve), abs=1e-5)
    best = min(criteria(rows))[1]
    assert load_params(folder)[1] == best
    assert [path.name for path in (folder / "best").glob("[0-9]*")] == [str(best)]


def criteria(rows):
    """The criterion of each evaluation, and its step; of equals the first is best."""
    for row in rows:
        if "eval/loss" in row:
            yield -row.get("eval/accuracy", -row["eval/loss"]), row["step"]


def without(folder, *names):
    """A run of today becomes one of before there were these settings."""
    values = json.loads((folder / "config.json").read_text())
    for name in names:
        group, key = name.split(".")
        del values[group][key]
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("model", "null_position"), [(bert_mini, "readout"), (gpt_mini, "first")]
)
def test_older_spans_have_no_answer_where_they_learnt_it(
    model, null_position, tmp_path
):
    """At the first token, which in a decoder is no more that of today."""
    config = squad.get_config("tiny")
    config.model = model.get_config("tiny").model
    configs.write_run_folder(tmp_path, config)
    without(tmp_path, "task.null_position", "task.positive_label")
    older = configs.read_config(tmp_path)
    assert older.task.null_position == null_position
    assert "positive_label" not in older.task  # which the kind does not read
    with (
        nullcontext()
        if null_position == "readout"
        else pytest.raises(UserError, match="null_position was 'first', is 'readout'")
    ):
        configs.check_same(tmp_path, config)
    config.task.null_position = null_position
    configs.check_same(tmp_path, config)


@pytest.mark.parametrize("name", RUNS)
def test_runs_from_before_a_setting_open_and_resume(name, expected, monkeypatch):
    """The config of today resumes them; theirs is complete once they have resumed."""
    folder, today = Path(name), configs.read_config(Path(name))
    if name != "topic":
        (folder / "data.json").unlink()  # refused for what it says; not the matter here
    configs.write_run_folder(folder, today)  # as the code of today writes it
    later = ["run.remat"] if name == "topic" else ["data.heldout_tokens", "run.remat"]
    without(folder, *later)
    assert open_run(folder).config == today
    monkeypatch.setattr(loop, "fit", lambda state, *_, **__: state)
    RUNS[name](today, folder)
    assert json.loads((folder / "config.json").read_text()) == today.to_dict()
