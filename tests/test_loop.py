"""The loop on a toy step: counting, resuming, stopping, what is kept."""

import itertools
import json
import os
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from errors import UserError
from training import loop
from training.checkpoints import Checkpoints, load_params
from training.metrics import MetricsWriter, draw_curves, read_metrics
from training.step import create_state, make_train_step

TX = optax.adam(0.1)


def loss_terms(params, batch, dropout_key):
    error = jnp.sum((params["kernel"] - batch["x"]) ** 2)
    return {"square": (error, jnp.ones(()), {})}


TRAIN_STEP = jax.jit(make_train_step(loss_terms, TX, lambda _: 0.1, micro_batches=1))


def batches(first, spoil=None, signal_at=None):
    for step in itertools.count(first):
        if step == signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        x = np.random.default_rng(step).normal(size=3).astype(np.float32)
        yield {"x": np.full(3, np.nan, np.float32) if step == spoil else x}


def run(
    folder, total_steps=7, losses=None, eval_every_steps=3, patience=0, **disturbance
):
    """One invocation: resumes what is in the folder; returns the state and signal."""
    checkpoints = Checkpoints(folder)
    state = create_state({"kernel": jnp.zeros(3)}, TX)
    if checkpoints.latest_step() is not None:
        state = checkpoints.restore(state)
    writer = MetricsWriter(folder, int(state.step), writes=True)
    losses = iter(losses or itertools.repeat(1.0))
    try:
        with loop.StopSignal() as stop:
            state = loop.fit(
                state,
                batches(int(state.step), **disturbance),
                train_step=TRAIN_STEP,
                evaluate=lambda _: None if stop.received else {"loss": next(losses)},
                checkpoints=checkpoints,
                writer=writer,
                key=jax.random.key(0),
                stop=stop,
                total_steps=total_steps,
                throughput=lambda rate, batch: {
                    "tokens_per_second": rate * len(batch["x"])
                },
                log_every_steps=1,
                eval_every_steps=eval_every_steps,
                save_every_minutes=10.0,
                criterion=lambda values: values["loss"],
                patience=patience,
            )
    finally:
        writer.close()
        checkpoints.close()
    return state, stop.received


def saved_steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_total_steps_are_that_many_updates(tmp_path):
    state, received = run(tmp_path, total_steps=3)
    assert received is None
    assert int(state.step) == 3 == saved_steps(tmp_path)[-1]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3]
    assert [row["step"] for row in rows if "eval/loss" in row] == [3]
    kernel, batch = np.zeros(3), next(batches(0))["x"]
    expected = np.sum((kernel - batch) ** 2)
    np.testing.assert_allclose(rows[0]["train/loss"], expected, rtol=1e-6)


@pytest.mark.parametrize("signal_at", [0, 2, 3, 6])
def test_stopped_and_resumed_is_the_same_run(tmp_path, signal_at):
    whole, _ = run(tmp_path / "whole")
    stopped, received = run(tmp_path / "cut", signal_at=signal_at)
    assert received == signal.SIGTERM
    assert int(stopped.step) == signal_at + 1  # the update under way is finished
    resumed, received = run(tmp_path / "cut")
    assert received is None
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    rows = [
        read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")
    ]
    for name in ("train/loss", "eval/loss"):
        one, other = (
            [(row["step"], row[name]) for row in each if name in row] for each in rows
        )
        assert one == other


def test_the_share_of_time_that_batches_are_waited_for(tmp_path):
    run(tmp_path, total_steps=2)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    shares = [row["train/input_wait"] for row in rows if "train/loss" in row]
    assert len(shares) == 2 and all(0 <= share < 1 for share in shares)
    timer = loop._Timer(0)
    with timer.waiting():
        time.sleep(0.02)
    with timer.paused():
        time.sleep(0.5)
    rate, share = timer.look(3)
    assert rate > 3 / 0.5  # the pause does not count
    assert share > 0.5


def test_the_signal_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run(tmp_path, total_steps=2, signal_at=1)
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_a_loss_that_is_not_finite_stops_and_is_never_saved(tmp_path):
    with pytest.raises(UserError, match=r"step 5: loss=nan.*checkpoint is of step 4"):
        run(tmp_path, eval_every_steps=2, spoil=4)
    assert saved_steps(tmp_path) == [2, 4]
    params, step = load_params(tmp_path)
    assert step in (2, 4)
    assert np.isfinite(params["kernel"]).all()


def test_a_loss_that_is_not_finite_at_a_checkpoint_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="step 4"):
        run(tmp_path, eval_every_steps=2, spoil=3)
    assert saved_steps(tmp_path) == [2]


def test_the_last_two_and_the_best_are_kept_over_a_resumption(tmp_path):
    run(tmp_path, total_steps=3, losses=[3.0, 1.0, 2.0], eval_every_steps=1)
    assert saved_steps(tmp_path) == [2, 3]
    run(tmp_path, total_steps=6, losses=[4.0, 5.0, 6.0], eval_every_steps=1)
    assert saved_steps(tmp_path) == [2, 5, 6]
    assert load_params(tmp_path)[1] == 2


def test_patience_stops_early_and_a_resumption_remembers(tmp_path):
    losses = [3.0, 1.0, 2.0, 1.0, 0.5]  # as low as the best is not better
    state, _ = run(tmp_path, losses=losses, eval_every_steps=1, patience=2)
    assert int(state.step) == 4
    state, _ = run(tmp_path, losses=[0.5], eval_every_steps=1, patience=2)
    assert int(state.step) == 4  # stays stopped
    run(tmp_path / "b", 3, losses=losses[:3], eval_every_steps=1, patience=2)
    state, _ = run(tmp_path / "b", losses=losses[3:], eval_every_steps=1, patience=2)
    assert int(state.step) == 4  # one of the two was before


def test_a_disk_too_full_for_a_checkpoint_is_named_before_it_is_begun(
    tmp_path, monkeypatch
):
    run(tmp_path, total_steps=2)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(UserError, match=r"is full: .* 0.0 MB are free.*after step 2"):
        run(tmp_path, total_steps=4)
    assert saved_steps(tmp_path) == [2]
    monkeypatch.undo()
    state, _ = run(tmp_path, total_steps=4)
    assert int(state.step) == 4


def test_parameters_load_as_numpy_and_equal_the_state(tmp_path):
    state, _ = run(tmp_path, total_steps=2)
    params, step = load_params(tmp_path)
    assert step == 2
    assert type(params["kernel"]) is np.ndarray
    np.testing.assert_array_equal(params["kernel"], state.params["kernel"])


def test_no_checkpoint_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        load_params(tmp_path)


def test_metrics_after_the_step_are_dropped_and_a_torn_line_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "train/loss": 1.0}) for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"step": 4, "tra')
    writer = MetricsWriter(tmp_path, 2, writes=True)
    writer.write(3, {"train/loss": 0.5})
    writer.close()
    found = [(row["step"], row["train/loss"]) for row in read_metrics(path)]
    assert found == [(1, 1.0), (2, 1.0), (3, 0.5)]
    assert list(tmp_path.glob("events.*"))


def test_curves_are_a_picture(tmp_path):
    rows = [
        {
            "step": step,
            "train/loss": 5.0 - step,
            "train/learning_rate": 0.1,
            "train/grad_norm": 1.0,
        }
        for step in (1, 2)
    ] + [{"step": 2, "eval/loss": 3.5}]
    draw_curves(rows, tmp_path / "c.png", line_to_beat=4.0, line_name="entropy")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
