"""Whole runs: killed and resumed, on one device and on eight, evaluated exactly."""

import dataclasses
import importlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import train
import use
from data.corpora import is_heldout
from errors import UserError
from pretraining.record import Line
from training import costs, loop, parallel, runs
from training.checkpoints import Checkpoints, load_params
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
    config.model.update(num_layers=1, precision="float32")
    config.run.log_every_steps = 1
    return config


def curve(workdir, name="train/loss"):
    rows = read_metrics(workdir / "metrics.jsonl")
    return [(row["step"], row[name]) for row in rows if name in row]


@pytest.mark.parametrize("name", ["bert_base", "gpt1", "elmo"])
def test_eight_devices_give_the_losses_of_one(name, folder):
    """With sentence pairs and dropout for BERT, words drawn for the softmax of ELMo;
    rows have uneven weights."""
    losses = {}
    for devices in (1, 8):
        config = tiny(name, folder)
        config.run.mesh.data = devices
        workdir = folder / f"{name}_{devices}"
        assert train.train(config, workdir).exit_status == 0
        losses[devices] = curve(workdir), curve(workdir, "eval/loss")
    np.testing.assert_allclose(losses[8][0], losses[1][0], rtol=1e-5)
    np.testing.assert_allclose(losses[8][1], losses[1][1], rtol=1e-5)


def test_rows_that_go_on_do_so_on_any_devices_and_after_a_stop(folder, monkeypatch):
    """Also in micro-batches; what is carried is in the checkpoint."""

    def run(name, devices=1, micro_batches=1):
        config = tiny("elmo", folder)
        config.objective.carry_state = True
        config.data.sequence_length = 8
        config.run.update(micro_batches=micro_batches)
        config.run.mesh.data = devices
        result = train.train(config, folder / f"carry_{name}")
        return result.step, outcome(folder / f"carry_{name}")

    _, (params, *curves) = run("one")
    for name, *cut in (("eight", 8, 1), ("parts", 2, 2)):
        _, (_, *found) = run(name, *cut)
        for one, other in zip(curves, found, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5)
    with monkeypatch.context() as patch:
        stop_in_update(patch, 3)
        assert run("stopped")[0] == 4
    _, (resumed, *found) = run("stopped")
    assert found == curves
    jax.tree.map(np.testing.assert_array_equal, resumed, params)


@pytest.mark.parametrize("name", ["gpt_mini", "foreword_mixed"])
def test_weights_are_kept_after_so_many_words(name, folder):
    """Words as in the text, of which two passes are so many updates; each of several
    batches in one reads the text."""
    config = tiny(name, folder)
    mesh = parallel.make_mesh(1)
    data = train.open_data(config, mesh)
    documents = (folder / "corpus.txt").read_text().split("\n\n")
    words = sum(len(d.split()) for d in documents if not is_heldout(d, 0.3))
    parts = jax.tree.leaves(train.rows_of(config)), jax.tree.leaves(data.examples[0])
    share = sum(rows / len(own) for rows, own in zip(*parts, strict=True))
    config.optim.total_steps = math.ceil(2 / share)
    config.run.keep_weights_at = (f"{2 * words - 1} words", 1)
    assert train.make_job(config, data, mesh).weights_kept == {
        1: ("1",),
        math.ceil((2 * words - 1) / words / share): (f"{2 * words - 1}_words",),
    }


def test_kept_weights_are_a_run_that_can_be_used(folder):
    config = tiny("gpt_mini", folder)
    config.run.keep_weights_at = (2, "100%")
    assert train.train(config, folder / "keeps").step == 6
    whole = use.open_run(folder / "keeps")
    last = use.open_run(folder / "keeps/kept/100%")
    early = use.open_run(folder / "keeps/kept/2")
    jax.tree.map(np.testing.assert_array_equal, last.params, whole.params)
    assert early.tokenizer.pieces == whole.tokenizer.pieces
    assert use.generate(early, "the model", samples=1, max_tokens=4)


@pytest.mark.parametrize("name", ["bert_base", "bert_mini", "gpt_mini"])
def test_evaluation_does_not_depend_on_batch_size_or_micro_batches(name, folder):
    config = tiny(name, folder)
    mesh = parallel.make_mesh(1)
    data = train.open_data(config, mesh)
    params = train.make_job(config, data, mesh).fresh()
    found = []
    for batch_size, micro_batches in ((1, 1), (5, 1), (16, 1), (16, 4)):
        config.data.batch_size = batch_size
        job = train.make_job(config, train.open_data(config, mesh), mesh)
        programs = runs.Programs(
            None, runs.evaluations(job, job.held_out, micro_batches), micro_batches
        )
        found.append(job.measure(programs, params, loop.StopSignal()))
        again = job.measure(programs, params, loop.StopSignal())
        assert again == found[-1]  # dropout is off
    for values in found[1:]:
        assert values.keys() == found[0].keys()
        for key, value in values.items():
            np.testing.assert_allclose(value, found[0][key], rtol=1e-5, err_msg=key)


PHASES = (
    ("50%", {"sequence_length": 16, "max_predictions": 3}),
    (6, {"batch_size": 16}),
)


def in_phases(folder):
    """Four updates of 8 rows of 32, two of 8 of 16, two of 16 of 16."""
    config = tiny("bert_base", folder)
    config.data.phases = PHASES
    config.optim.update(total_steps="1792 tokens", warmup_steps="25%")
    config.optim.eval_every_steps = 2
    config.run.mesh.data = 1
    return config


@pytest.fixture(scope="module")
def undisturbed(folder):
    """The run in phases: its folder, parameters and curves."""
    workdir = folder / "in_phases"
    assert train.train(in_phases(folder), workdir).step == 8
    return outcome(workdir)


def outcome(workdir):
    return load_params(workdir)[0], curve(workdir), curve(workdir, "eval/loss")


def stop_in_update(monkeypatch, at):
    """A signal comes while the batch of an update is waited for."""
    real = runs.device_batches

    def batches(job, first, programs):
        for step, batch in enumerate(real(job, first, programs), first):
            if step == at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(loop, "REPEAT_SECONDS", 0.0)
    monkeypatch.setattr(runs, "device_batches", batches)


@pytest.mark.parametrize("at", [2, 3, 4])
def test_a_run_resumes_across_phases_as_if_undisturbed(
    at, folder, undisturbed, monkeypatch
):
    """Stopped before a boundary, at it and after it."""
    workdir = folder / f"phases_cut_{at}"
    with monkeypatch.context() as patch:
        stop_in_update(patch, at)
        stopped = train.train(in_phases(folder), workdir)
    assert (stopped.step, stopped.signal) == (at + 1, signal.SIGTERM)
    assert train.train(in_phases(folder), workdir).step == 8
    params, *curves = outcome(workdir)
    assert curves == [*undisturbed[1:]]
    jax.tree.map(np.testing.assert_array_equal, params, undisturbed[0])


def test_eight_devices_give_the_losses_of_one_across_phases(folder, undisturbed):
    """The rows of the last phase are cut further as well."""
    config = in_phases(folder)
    config.run.mesh.data = 8
    workdir = folder / "phases_8"
    assert train.train(config, workdir).step == 8
    for one, eight in zip(undisturbed[1:], outcome(workdir)[1:], strict=True):
        np.testing.assert_allclose(eight, one, rtol=1e-5)


def test_the_data_of_a_run_are_those_of_its_course(folder):
    """A ramp shows what one batch size shows; rows of another length are drawn anew."""

    def tokens(phases, *steps):
        config = tiny("gpt_mini", folder)
        config.data.phases = phases
        batches = train.open_data(config, parallel.make_mesh(1)).batches
        return [batches[phase][step]["tokens"] for phase, step in steps]

    ramp = tokens(((2, {"batch_size": 16}),), (0, 0), (0, 1), (1, 0), (1, 1))
    constant = tokens((), *((0, step) for step in range(6)))
    np.testing.assert_array_equal(np.concatenate(ramp), np.concatenate(constant))
    short, again = {"sequence_length": 16}, {"sequence_length": 32}
    first, third = tokens(((2, short), (4, again)), (0, 0), (2, 0))
    assert first.shape == third.shape and (first != third).any()


def test_speed_is_that_of_the_phases(folder):
    """Of an interval across a boundary, too."""
    config = in_phases(folder)
    mesh = train.make_mesh(config)
    job = train.make_job(config, train.open_data(config, mesh), mesh)
    tokens = [job.work(step, step + 1).tokens for step in range(8)]
    assert tokens == [256] * 4 + [128] * 2 + [256] * 2
    assert job.work(0, 8).tokens == 1792 and job.work(3, 5).tokens == 384
    flops = [phase.flops for phase in job.phases]
    assert flops[2] == 2 * flops[1] < flops[0]
    assert job.work(3, 7).flops == flops[0] + 2 * flops[1] + flops[2]


def test_phases_are_compiled_before_the_first_update_and_only_those_left(
    folder, monkeypatch
):
    compiled, real = [], runs.update

    def update(job, feed, micro_batches):
        compiled.append(feed.batches[0]["tokens"].shape)
        return real(job, feed, micro_batches)

    def fit(state, *_, **__):
        raise RuntimeError

    monkeypatch.setattr(runs, "update", update)
    workdir = folder / "phases_compiled"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", fit)
        with pytest.raises(RuntimeError):
            train.train(in_phases(folder), workdir)
    assert compiled == [(8, 32), (8, 16), (16, 16)]
    with monkeypatch.context() as patch:
        stop_in_update(patch, 3)
        assert train.train(in_phases(folder), workdir).step == 4
    compiled.clear()
    assert train.train(in_phases(folder), workdir).step == 8
    assert compiled == [(8, 16), (16, 16)]


def test_a_phase_that_the_devices_cannot_share_is_refused_at_once(folder):
    config = in_phases(folder)
    config.data.update(phases=((5, {"batch_size": 12}),), corpus="missing.txt")
    config.run.micro_batches = 8
    with pytest.raises(UserError, match=r"^data.phases, from update 5 on: data.ba"):
        train.train(config, folder / "phases_uneven")


def test_each_phase_has_as_few_micro_batches_as_fit(folder, capsys, monkeypatch):
    config = in_phases(folder)
    config.data.phases = ((5, {"batch_size": 64}),)
    config.run.micro_batches = 0
    shown = train.dry_run(config)
    assert "\nan update from step 0 on: " in shown
    assert "\nan update from step 5 on: " in shown
    small, large, *_ = totals(shown)
    assert small < 0.9 * large
    capsys.readouterr()
    monkeypatch.setattr(costs, "device_memory", lambda: int(large))
    _, less, *_ = totals(train.dry_run(config))
    assert less < 0.9 * large
    assert capsys.readouterr().out.endswith("micro-batches: 1\nmicro-batches: 2\n")


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
        "--config.model.num_layers=1",
        "--config.model.residual_dropout=0.1",
        "--config.optim.eval_every_steps=40",
        "--config.run.log_every_steps=1",
    ]


ALONE = {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1")}


def start(folder, workdir):
    """The process of a run, in a group of its own, after some sixty steps."""
    process = subprocess.Popen(
        command(folder, workdir),
        env=os.environ | ALONE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while len(curve(workdir)) < 60:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    return process


def finish(folder, workdir):
    done = subprocess.run(
        command(folder, workdir),
        env=os.environ | ALONE,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def twice(folder):
    """What the same line says while a run is on its way, and the run's end."""
    workdir = folder / "twice"
    first = start(folder, workdir)
    first.send_signal(signal.SIGSTOP)  # so that it is not done before the second begins
    second = finish(folder, workdir)
    first.send_signal(signal.SIGCONT)
    output = first.communicate()[0]
    return first, output, second, outcome(workdir)


def test_the_same_line_twice_is_refused_and_the_first_goes_on(folder, twice):
    first, output, (status, said), (_, losses, _) = twice
    assert status == 2, said
    assert f"{folder / 'twice'} is being written by process {first.pid} on " in said
    assert first.returncode == 0, output
    assert [step for step, _ in losses] == list(range(1, 301))


def check_resumed(folder, workdir, twice):
    """As the run that no signal ended."""
    status, said = finish(folder, workdir)
    assert status == 0, said
    params, *curves = outcome(workdir)
    expected, *expected_curves = twice[-1]
    assert curves == expected_curves
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_killed_and_resumed_is_the_undisturbed_run(folder, twice):
    workdir = folder / "killed"
    process = start(folder, workdir)
    process.kill()
    output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output
    check_resumed(folder, workdir, twice)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_group_that_a_launcher_repeats_saves(folder, twice, number):
    workdir = folder / f"group_{number}"
    process = start(folder, workdir)
    os.killpg(process.pid, number)
    time.sleep(0.03)
    os.killpg(process.pid, number)
    output = process.communicate()[0]
    assert process.returncode == 128 + number, output
    assert "cannot schedule new futures" not in output
    last = curve(workdir)[-1][0]
    saved = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert saved[-1] == last
    assert f"stopped by {number.name} after step {last}" in output
    if number == signal.SIGTERM:
        check_resumed(folder, workdir, twice)


def test_show_batch_is_decoded_examples_and_trains_nothing(folder):
    shown = train.show_batch(tiny("bert_base", folder))
    assert "next sentence: " in shown
    assert "[CLS]" in shown
    assert "-> " in shown


def totals(shown):
    """Bytes in all of each program of a dry run."""
    lines = [line for line in shown.splitlines() if "total of a device" in line]
    return [float(line.split()[-2].replace(",", "")) * 1e6 for line in lines]


def test_dry_run_says_what_a_step_costs_and_trains_nothing(folder):
    config = tiny("gpt_mini", folder)
    config.run.mesh.data = 1
    shown = train.dry_run(config)
    params = 300 * 16 + 32 * 16 + 4 * 272 + 16 * 64 * 2 + 80 + 4 * 16 + 32
    assert config.model.vocab_size == 512
    params += (512 - 300) * 16
    assert f"gpt_mini_tiny: {params:,} parameters on 1 x cpu" in shown
    assert "\nan update: " in shown and "\nan evaluation of loss: " in shown
    assert len(totals(shown)) == 2 and shown.count("\nfits") == 2
    assert not (folder / "runs").exists()


def test_micro_batches_are_as_few_as_fit_the_memory(folder, capsys, monkeypatch):
    config = tiny("gpt_mini", folder)
    config.data.batch_size = 2
    config.run.micro_batches = 0
    config.run.mesh.data = 1

    def chosen(memory):
        monkeypatch.setattr(costs, "device_memory", lambda: memory)
        shown = train.dry_run(config)
        return capsys.readouterr().out, totals(shown)

    said, (update, _) = chosen(10**12)
    assert said.endswith("micro-batches: 1\n")
    # A tenth is kept free.
    assert chosen(int(update))[0].endswith("micro-batches: 2\n")
    with pytest.raises(UserError, match=r"run\.micro_batches doubled halves"):
        chosen(1000)


def test_an_evaluation_that_alone_would_not_fit_is_cut(folder, capsys, monkeypatch):
    """The update computes its logits in parts, the evaluation is made to need more."""
    config = tiny("gpt_mini", folder)
    config.data.batch_size = 4
    config.run.update(micro_batches=0)
    config.run.mesh.data = 1
    update, held_out = totals(train.dry_run(config))
    assert held_out < update
    real = runs.evaluations

    def needy(job, held_out, micro_batches):
        """Holds 16 MB more a row of a micro-batch."""
        evaluate = held_out["loss"].evaluate

        def larger(params, part):
            terms, outputs = evaluate(params, part)
            scratch = np.ones((1, 2**22), np.float32) * part["weights"][:, :1]
            kept = jax.numpy.sort(scratch).sum() * 0
            loss, weight, sums = terms["causal_lm"]
            return {"causal_lm": (loss + kept, weight, sums)}, outputs

        one = dataclasses.replace(held_out["loss"], evaluate=larger)
        return real(job, {"loss": one}, micro_batches)

    monkeypatch.setattr(runs, "evaluations", needy)
    capsys.readouterr()
    update, held_out = totals(train.dry_run(config))
    assert held_out > 2 * update and "micro-batches: 1\n" in capsys.readouterr().out
    monkeypatch.setattr(costs, "device_memory", lambda: int(held_out))
    (_, less) = totals(train.dry_run(config))
    assert "micro-batches: 2\n" in capsys.readouterr().out
    assert less < 0.9 * held_out


def test_a_run_in_parts_has_the_same_losses(folder):
    """Dropout draws the same in micro-batches and under pmap."""
    parts = {"micro_batches": 2, "logit_chunks": 3, "remat": "matmuls"}
    losses = []
    for devices, settings in (
        (1, {}),
        (2, parts),
        (2, {"parallel": "pmap", "micro_batches": 2}),
    ):
        config = tiny("bert_base", folder)
        assert config.model.residual_dropout == config.model.attention_dropout == 0.1
        config.run.update(settings)
        config.run.mesh.data = devices
        workdir = folder / f"parts_{len(losses)}"
        assert train.train(config, workdir).exit_status == 0
        losses.append(curve(workdir))
        np.testing.assert_allclose(losses[-1], losses[0], rtol=1e-5)


def test_heldout_tokens_cap_the_evaluation(folder):
    """In whole rows, one at least; 0 is all."""
    config = tiny("gpt_mini", folder)
    config.data.batch_size = 4

    def rows(tokens):
        config.data.heldout_tokens = tokens
        batches = train.open_data(config, parallel.make_mesh(1)).heldout_batches["loss"]
        used = [
            (batches[i]["segment_ids"] > 0).any(axis=1) for i in range(len(batches))
        ]
        return int(np.sum(used))

    every = rows(0)
    assert every > 5
    found = [rows(tokens) for tokens in (1, 32, 5 * 32, 10**6)]
    assert found == [1, 1, 5, every]


def test_a_run_that_is_done_says_so_and_is_left_alone(folder, capsys, monkeypatch):
    config = tiny("bert_mini", folder)
    config.run.mesh.data = 1
    done = train.train(config, folder / "done")
    (*_, (step, loss)) = curve(folder / "done", "eval/loss")
    assert (done.folder, done.step, step) == (folder / "done", 6, 6)
    assert done.metrics["loss"] == loss and done.signal is None

    def fail(*arguments):
        raise AssertionError(arguments)

    for module, name in (
        (parallel, "compile_train_step"),
        (parallel, "compile_eval_step"),
        (parallel, "start_state"),
        (Checkpoints, "restore"),
    ):
        monkeypatch.setattr(module, name, fail)
    capsys.readouterr()
    assert train.train(config, folder / "done") == done
    shown = capsys.readouterr().out
    assert "step 6: the run is done\n" in shown and "compiles" not in shown


def test_the_first_example_is_shown(folder, capsys):
    """Of the update that comes next; where nothing is left to train none."""
    config = tiny("bert_mini", folder)
    config.run.mesh.data = 1
    assert train.train(config, folder / "shown").step == 6
    lines = capsys.readouterr().out.splitlines()
    (at,) = (i for i, line in enumerate(lines) if line.startswith("update 0, row 0: "))
    assert lines[at + 1].startswith("  sequence 1: ") and " -> " in lines[at + 1]
    (folder / "shown" / "metrics.jsonl").unlink()  # the last evaluation was lost
    assert train.train(config, folder / "shown").step == 6
    assert "row 0: " not in capsys.readouterr().out


def test_a_damaged_checkpoint_gives_way_to_the_one_before(folder, capfd):
    """The same losses again; what cannot be exported is said at the start."""
    config, workdir = tiny("gpt_mini", folder), folder / "damaged"
    config.run.mesh.data, config.model.head_dim = 1, 12
    config.optim.eval_every_steps = 3
    whole = train.train(config, workdir)
    shown = capfd.readouterr().out
    assert "remark: convert.py cannot export this run: transformers cannot" in shown
    assert "model.hidden_size=16, but heads of 24 in all" in shown
    before = curve(workdir)
    (workdir / "metrics.jsonl").unlink()  # the last evaluation was lost
    (workdir / "checkpoints/6/state/manifest.ocdbt").write_bytes(b"")
    assert train.train(config, workdir) == whole
    said = capfd.readouterr()
    assert "checkpoints/6 is damaged" in said.err and "Traceback" not in said.err
    assert "it is now 6.damaged, and step 3 is resumed" in said.err
    assert "all 6 steps are done" in said.out and "steps 3 to 6;" in said.out
    assert curve(workdir) == before[3:]


def test_a_run_that_is_stopped_says_by_what(folder, monkeypatch):
    monkeypatch.setattr(loop, "REPEAT_SECONDS", 0.0)
    config = tiny("bert_mini", folder)
    config.run.mesh.data = 1
    config.optim.update(total_steps=4000, eval_every_steps=4000)
    workdir = folder / "stopped"

    def stop():
        while not (workdir / "metrics.jsonl").exists() or not curve(workdir):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    result = train.train(config, workdir)
    thread.join()
    assert (result.signal, result.exit_status) == (signal.SIGTERM, 143)
    assert result.step == curve(workdir)[-1][0] < 4000 and result.metrics == {}


def test_going_on_from_another_run_takes_its_weights_and_tokenizer(folder, capsys):
    first = tiny("bert_mini", folder)
    first.run.mesh.data = 1
    assert train.train(first, folder / "first").exit_status == 0
    config = tiny("bert_mini", folder)
    config.run.mesh.data = 1
    config.init_from = str(folder / "first")
    config.data.tokenizer.vocab_size = 200  # would be another tokenizer
    config.optim.update(total_steps=1, warmup_steps=0, learning_rate=0.0)
    assert train.train(config, folder / "second").exit_status == 0
    assert "taken" in capsys.readouterr().out
    one, other = load_params(folder / "first")[0], load_params(folder / "second")[0]
    jax.tree.map(np.testing.assert_array_equal, one, other)
    tokenizers = [
        (folder / name / "tokenizer.json").read_text() for name in ("first", "second")
    ]
    assert tokenizers[0] == tokenizers[1]
    config.model.hidden_size = 8
    with pytest.raises(UserError, match=r"embeddings/norm/.* is \(16,\) there"):
        train.train(config, folder / "third")


def test_speed_is_logged_with_what_is_no_padding(folder):
    config = tiny("bert_base", folder)
    config.run.mesh.data = 1
    assert train.train(config, folder / "speed").exit_status == 0
    rows = read_metrics(folder / "speed" / "metrics.jsonl")
    row = next(row for row in rows if "train/loss" in row)
    tokens, useful = (
        row[f"train/{name}"]
        for name in ("tokens_per_second", "useful_tokens_per_second")
    )
    assert 0 < useful < tokens  # sentence pairs leave some padding
    assert "train/mfu" not in row  # a CPU's peak is not known


def test_too_little_memory_is_explained(folder):
    """Attention over 2**19 tokens has 2**39 scores, terabytes of them."""
    config = tiny("gpt_mini", folder)
    config.data.update(sequence_length=2**19, batch_size=1)
    config.model.update(max_positions=2**19, num_layers=1)
    config.run.mesh.data = 1
    with pytest.raises(UserError) as caught:
        train.train(config, folder / "too_little_memory")
    said = str(caught.value)
    # Older jax names the event before, still older calls it internal.
    assert re.match(r"(RESOURCE_EXHAUSTED|INTERNAL): .*Out of memory", said)
    (line,) = (line for line in said.splitlines() if "activations, gradients" in line)
    assert float(line.split()[-2].replace(",", "")) > 1e6  # MB
    assert "run.micro_batches doubled halves the activations" in said


def test_only_too_little_memory_is_explained():
    def explained(work):
        with costs.memory_explained("eat less"):
            work()

    def fail():
        raise jax.errors.JaxRuntimeError("INTERNAL: another fault")

    with pytest.raises(UserError, match=r"(?s)RESOURCE_EXHAUSTED.*eat less"):
        explained(lambda: jax.numpy.zeros(2**46).block_until_ready())
    with pytest.raises(jax.errors.JaxRuntimeError, match="another"):
        explained(fail)


def test_model_flops_utilisation_by_hand(monkeypatch):
    monkeypatch.setitem(costs.PEAK_FLOPS, jax.devices()[0].device_kind, 1e6)
    # Ten steps of four tokens, in two seconds.
    rates = costs.throughput(costs.Work(40, 1e6), 2.0, 0.75)
    assert rates == {
        "tokens_per_second": 20.0,
        "useful_tokens_per_second": 15.0,
        "mfu": 0.5,  # 5e5 a second of 1e6
    }


def test_an_evaluation_that_is_no_number_is_not_reported_as_the_best(tmp_path, capsys):
    losses = {2: float("nan"), 4: 3.0, 6: 5.0}
    lines = [json.dumps({"step": at, "eval/loss": x}) for at, x in losses.items()]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    config = importlib.import_module("configs.bert_mini").get_config("tiny")
    lines = (Line("a line", "loss", 4.0),)
    train.report(config, runs.Result(tmp_path, 6, {}, None), lines)
    said = capsys.readouterr().out
    assert "last 5.0000 (step 6), best 3.0000 (step 4)\n  loss 5.000; a line 4" in said
    assert "the run knows no more than a line (loss)" in said
