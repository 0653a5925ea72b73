"""Whole runs: killed and resumed, on one device and on eight, evaluated exactly."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import models
import train
from data import shards
from prepare import prepare
from training import loop, parallel
from training.checkpoints import load_params
from training.metrics import read_metrics

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty documents of several sentences of uneven length, and a cache."""
    folder = tmp_path_factory.mktemp("train")
    words = "the model reads a short text and learns which word may follow it".split()
    generator = np.random.default_rng(0)
    documents = [
        "\n".join(
            " ".join(generator.choice(words, generator.integers(2, 15))) + "."
            for _ in range(generator.integers(2, 9))
        )
        for _ in range(60)
    ]
    (folder / "corpus.txt").write_text("\n\n".join(documents))
    patch = pytest.MonkeyPatch()
    patch.setenv("FOREWORD_CACHE", str(folder / "cache"))
    yield folder
    patch.undo()


def tiny(name, folder):
    config = importlib.import_module(f"configs.{name}").get_config("tiny")
    config.data.update(corpus=str(folder / "corpus.txt"), heldout_fraction=0.3)
    config.data.tokenizer.vocab_size = 300
    config.optim.update(total_steps=6, warmup_steps=2)
    config.run.update(log_every_steps=1, precision="float32")
    return config


def curve(workdir, name="train/loss"):
    rows = read_metrics(workdir / "metrics.jsonl")
    return [(row["step"], row[name]) for row in rows if name in row]


@pytest.mark.parametrize("name", ["bert_base", "gpt1"])
def test_eight_devices_give_the_losses_of_one(name, folder):
    """With sentence pairs and dropout for BERT; rows have uneven weights."""
    losses = {}
    for devices in (1, 8):
        config = tiny(name, folder)
        config.run.mesh.data = devices
        workdir = folder / f"{name}_{devices}"
        assert train.train(config, workdir) == 0
        losses[devices] = curve(workdir), curve(workdir, "eval/loss")
    np.testing.assert_allclose(losses[8][0], losses[1][0], rtol=1e-5)
    np.testing.assert_allclose(losses[8][1], losses[1][1], rtol=1e-5)


@pytest.mark.parametrize("name", ["bert_base", "bert_mini", "gpt_mini"])
def test_evaluation_does_not_depend_on_the_batch_size(name, folder):
    config = tiny(name, folder)
    tokenizer, data = prepare(config)
    heldout = shards.open_shards(data, "heldout")
    model = models.build(config.model.to_dict(), "float32")
    loss_terms = train.LOSS_TERMS[config.objective.name](model)
    examples = train.make_examples(config, tokenizer, heldout)
    example = examples.example(0, np.random.default_rng(0))
    batch = {key: value[None] for key, value in example.items()}
    params = train.init_params(model, batch, 0)
    found = []
    for batch_size in (1, 5, 16):
        config.data.batch_size = batch_size
        evaluate = train.make_evaluate(
            config,
            tokenizer,
            heldout,
            loss_terms,
            parallel.make_mesh(1),
            loop.StopSignal(),
        )
        found.append(evaluate(params))
        assert evaluate(params) == found[-1]  # dropout is off
    assert found[0].keys() == found[1].keys() == found[2].keys()
    for values in found[1:]:
        for key, value in values.items():
            np.testing.assert_allclose(value, found[0][key], rtol=1e-5, err_msg=key)


def command(folder, workdir):
    return [
        sys.executable,
        ROOT / "train.py",
        f"--config={ROOT}/configs/bert_mini.py:tiny",
        f"--workdir={workdir}",
        f"--config.data.corpus={folder / 'corpus.txt'}",
        "--config.data.heldout_fraction=0.3",
        "--config.data.tokenizer.vocab_size=300",
        "--config.optim.total_steps=300",
        "--config.model.residual_dropout=0.1",
        "--config.run.eval_every_steps=40",
        "--config.run.log_every_steps=1",
    ]


def test_killed_at_any_moment_and_resumed_is_the_undisturbed_run(folder):
    environment = os.environ | {"XLA_FLAGS": ""}

    def finish(workdir):
        done = subprocess.run(
            command(folder, workdir), env=environment, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return load_params(workdir)[0], curve(workdir), curve(workdir, "eval/loss")

    params, losses, evaluations = finish(folder / "whole")
    assert [step for step, _ in losses] == list(range(1, 301))
    for number, status in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        workdir = folder / f"cut_{status}"
        process = subprocess.Popen(
            command(folder, workdir),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while not (workdir / "metrics.jsonl").exists() or len(curve(workdir)) < 60:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.01)
        process.send_signal(number)
        output = process.communicate()[0]
        assert process.returncode == status, output
        if number == signal.SIGTERM:
            assert "stopped by SIGTERM after step" in output
        again = finish(workdir)
        assert again[1:] == (losses, evaluations)
        jax.tree.map(np.testing.assert_array_equal, again[0], params)


def test_show_batch_prints_decoded_examples_and_trains_nothing(folder, capsys):
    assert train.show_batch(tiny("bert_base", folder)) == 0
    shown = capsys.readouterr().out
    assert "next sentence: " in shown
    assert "[CLS]" in shown
    assert "-> " in shown
