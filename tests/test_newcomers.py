"""A family, a way to pre-train, a kind of task: each is one new file and one line."""

import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from newcomers import running_mean, skip_lm, word_count

import finetune
import models
import predict
import train
from configs import bert_mini, gpt_mini
from configs.finetune import topic
from errors import UserError
from pretraining import PRETRAININGS
from tasks import KINDS
from training import loop, parallel
from training.checkpoints import load_params
from training.metrics import read_metrics

WORDS = "the model reads a short text and learns which word may follow it".split()
FAMILY = {"family": "running_mean", "precision": "float32", "rate": 0.2}
# The runs of train.py, and those of finetune.py with what they begin from.
PRETRAINED = ("gpt", "bert", "family", "way", "family_and_way")
TUNED = {
    "family_topic": "family",
    "gpt_words": "gpt",
    "bert_words": "bert",
    "all_words": "family_and_way",
}


@pytest.fixture(scope="module", autouse=True)
def house(tmp_path_factory):
    """With the three lines, in a folder with a corpus and two labelled files."""
    folder = tmp_path_factory.mktemp("house")
    texts = [" ".join(WORDS[i % 5 : 12 - i % 7]) + f" {i}." for i in range(60)]
    (folder / "corpus.txt").write_text("\n\n".join(texts))
    rows = {
        "topics.tsv": [f"{text}\t{'ab'[len(text) % 2]}" for text in texts],
        "words.tsv": [f"{text}\t{len(text.split())}" for text in texts],
    }
    for name, lines in rows.items():
        (folder / name).write_text("\n".join(["text\tlabel", *lines]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.FAMILIES, "running_mean", running_mean.FAMILY)
        patch.setitem(PRETRAININGS, "skip_lm", skip_lm.PRETRAINING)
        patch.setitem(KINDS, "word_count", word_count.KIND)
        patch.setattr(loop, "REPEAT_SECONDS", 0.01)
        patch.setenv("FOREWORD_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield


def use_the_family(config):
    config.model = ConfigDict(FAMILY | running_mean.FAMILY.tiny)
    config.optim.no_decay = (".*/bias",)  # it has no norm


def pretraining(name):
    config = (bert_mini if name == "bert" else gpt_mini).get_config("tiny")
    config.data.update(corpus="corpus.txt", heldout_fraction=0.3)
    config.data.tokenizer.vocab_size = 300
    config.model.num_layers = 1
    if "family" in name:
        use_the_family(config)
    if "way" in name:
        config.objective = ConfigDict({"name": "skip_lm", "skip": 2})
    config.optim.update(total_steps=6, warmup_steps=1, eval_every_steps=3)
    config.run.update(data_threads=0, log_every_steps=1)
    config.run.mesh.data = 1
    return config


def finetuning(name):
    config = topic.get_config("tiny")
    config.init_from = TUNED[name]
    config.data.update(train="topics.tsv", train_examples=0, max_length=16)
    if "words" in name:
        config.data.train = "words.tsv"
        config.task.update(kind="word_count", metric="closeness", unit=10)
    else:
        config.objective.lm_weight = 0.5
    if "family" in TUNED[name]:
        use_the_family(config)
    elif TUNED[name] == "gpt":
        config.model = pretraining("gpt").model
    config.optim.epochs = 1.0
    config.run.update(data_threads=0, log_every_steps=1)
    config.run.mesh.data = 1
    return config


def run(name, folder):
    if name in TUNED:
        return finetune.finetune(finetuning(name), folder)
    return train.train(pretraining(name), folder)


@pytest.fixture(scope="module")
def done(house):
    """name -> the folder of the finished run, which is made when asked for."""

    def folder_of(name):
        folder = Path(name)
        if not folder.exists():
            if name in TUNED:
                folder_of(TUNED[name])
            assert run(name, folder).signal is None
        return folder

    return folder_of


def told_to_stop_at(monkeypatch, number):
    """SIGTERM when batch `number` is put on the device."""
    place, calls = parallel.shard_batch, []

    def placed(*arguments):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return place(*arguments)

    monkeypatch.setattr(parallel, "shard_batch", placed)


def learnt(folder):
    """Loss and gradient norm of each update, each evaluation, and the best weights."""
    rows = read_metrics(folder / "metrics.jsonl")
    names = ("train/loss", "train/grad_norm", "eval/loss")
    numbers = {(row["step"], k): row[k] for row in rows for k in names if k in row}
    return numbers, load_params(folder)


@pytest.mark.parametrize("name", [*PRETRAINED[2:], *TUNED])
def test_it_trains_and_resumes_bit_for_bit(name, done, monkeypatch):
    whole, cut = done(name), Path(f"{name}_cut")
    with monkeypatch.context() as patch:
        told_to_stop_at(patch, 3)
        assert run(name, cut).signal == signal.SIGTERM
    assert run(name, cut).signal is None
    (numbers, (params, step)), (again, (params_again, step_again)) = map(
        learnt, (whole, cut)
    )
    assert numbers == again and len(numbers) > 8
    assert step == step_again
    jax.tree.map(np.testing.assert_array_equal, params, params_again)


@pytest.mark.parametrize("name", [*PRETRAINED[2:], *TUNED])
def test_it_dry_runs_and_shows_a_batch(name, done):
    if name in TUNED:
        done(TUNED[name])
    command, config = (
        (train, pretraining)
        if name in PRETRAINED
        else (
            finetune,
            finetuning,
        )
    )
    assert "an update: " in command.dry_run(config(name))
    assert "model reads" in command.show_batch(config(name))


def said(capsys, *arguments):
    capsys.readouterr()
    assert predict.main(["predict.py", *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["family", "way", "family_and_way", *TUNED])
def test_texts_become_vectors(name, done, capsys):
    line = said(capsys, "embed", f"--workdir={done(name)}", "--text=a short text")
    assert len(json.loads(line)["embedding"]) == 16


def test_a_family_learns_an_existing_kind(done, capsys):
    folder = done("family_topic")
    line = said(
        capsys, "classify", f"--workdir={folder}", "--text=a text", "--format=jsonl"
    )
    assert {*json.loads(line)["probabilities"]} == {"a", "b"}


@pytest.mark.parametrize("name", ["gpt_words", "bert_words", "all_words"])
def test_a_kind_predicts(name, done, capsys):
    folder = done(name)
    results = json.loads((folder / "results.json").read_text())
    predicted = (folder / "predictions_eval.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in predicted]
    errors = [abs(row["words"] - float(row["gold"])) for row in rows]
    closeness = results["splits"]["eval"]["closeness"]
    assert closeness == pytest.approx(-np.mean(errors))
    out = said(capsys, "count_words", f"--workdir={folder}", "--input=words.tsv")
    assert out.startswith("words") and len(out.splitlines()) == 61


def test_the_command_of_a_kind_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        predict.main(["predict.py", "--help"])
    assert "how many words a text has" in capsys.readouterr().out


def test_what_a_newcomer_cannot_do_is_said(done):
    config = pretraining("family")
    config.model.rate = 1.0
    with pytest.raises(UserError, match=r"model\.rate=1\.0 must be"):
        train.dry_run(config)
    config = pretraining("way")
    config.objective.skip = 0
    with pytest.raises(UserError, match=r"objective\.skip=0 must be"):
        train.dry_run(config)
    config = finetuning("gpt_words")
    config.task.unit = 0
    with pytest.raises(UserError, match=r"task\.unit=0 must be"):
        finetune.dry_run(config)
    config = pretraining("bert")
    config.objective = ConfigDict({"name": "skip_lm", "skip": 2})
    with pytest.raises(UserError, match="'running_mean'"):
        train.dry_run(config)
    for arguments in (
        ("generate", f"--workdir={done('family')}"),
        ("generate", f"--workdir={done('way')}"),
        ("classify", f"--workdir={done('all_words')}", "--text=a"),
    ):
        with pytest.raises(UserError, match=arguments[0]):
            predict.main(["predict.py", *arguments])
