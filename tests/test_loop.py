"""The loop on a toy step: counting, resuming, stopping, what is kept."""

import itertools
import json
import os
import re
import shutil
import signal
import threading
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import struct
from jax.sharding import PartitionSpec

from errors import UserError
from training import costs, loop, parallel
from training.checkpoints import Checkpoints, DamagedCheckpoint, load_params
from training.metrics import MetricsWriter, averaged, draw_curves, read_metrics
from training.step import TrainState, create_state, make_train_step

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
        x = np.full(3, np.nan, np.float32) if step == spoil else x
        yield {"x": x, "segment_ids": np.ones((1, 3), np.int32)}


def run(
    folder,
    total_steps=7,
    losses=None,
    eval_every_steps=3,
    patience=0,
    watch=None,
    weights_kept=types.MappingProxyType({}),
    **disturbance,
):
    """One invocation: resumes what is in the folder; returns the state and signal.

    During an evaluation whose loss is None a signal comes.
    """
    checkpoints = Checkpoints(folder)
    state = create_state({"kernel": jnp.zeros(3)}, TX)
    if checkpoints.latest_step() is not None:
        state = checkpoints.restore(state)
    writer = MetricsWriter(folder, int(state.step), writes=True, watch=watch)
    losses = iter(losses or itertools.repeat(1.0))

    def evaluate(_):
        loss = next(losses)
        if loss is None:
            os.kill(os.getpid(), signal.SIGTERM)
        return None if stop.received else {"loss": loss}

    try:
        with loop.StopSignal() as stop:
            state = loop.fit(
                state,
                batches(int(state.step), **disturbance),
                train_step=lambda step: TRAIN_STEP,
                evaluate=evaluate,
                checkpoints=checkpoints,
                writer=writer,
                key=jax.random.key(0),
                stop=stop,
                total_steps=total_steps,
                work=lambda first, last: costs.Work(3 * (last - first), 0.0),
                log_every_steps=1,
                eval_every_steps=eval_every_steps,
                save_every_minutes=10.0,
                criterion=lambda values: values["loss"],
                patience=patience,
                weights_kept=weights_kept,
            )
    finally:
        writer.close()
        checkpoints.close()
    return state, stop.received


def test_who_watches_is_told_of_each_line_in_place_of_the_bar(tmp_path, capfd):
    seen = []

    def watch(step):  # the line is there already
        seen.append((step, read_metrics(tmp_path / "metrics.jsonl")[-1]["step"]))

    run(tmp_path, total_steps=3, watch=watch)
    steps = [step for step, _ in seen]
    assert steps == [1, 2, 3, 3]  # the last one is the evaluation
    assert all(step == written for step, written in seen)
    assert "step 2/3" not in capfd.readouterr().out
    run(tmp_path / "other", total_steps=3)
    assert "step 2/3" in capfd.readouterr().out


def saved_steps(folder, name="checkpoints"):
    names = [path.name for path in (folder / name).iterdir()]
    return sorted(int(name) for name in names if name.isdecimal())


def evaluations(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    return [(row["step"], row["eval/loss"]) for row in rows if "eval/loss" in row]


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


def test_the_first_updates_are_logged_before_the_first_multiple():
    logged = [step for step in range(1, 32) if loop.is_logged(step, 31, 10)]
    assert logged == [1, 2, 4, 8, 10, 20, 30, 31]
    assert [step for step in range(1, 5) if loop.is_logged(step, 9, 1)] == [1, 2, 3, 4]


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


def test_weights_are_kept_as_run_folders_of_their_own(tmp_path):
    """Also over an interruption, in which one of them was half written."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "data.json").write_text("{}")
    kept = {2: ("2",), 5: ("5M_words", "70%")}
    run(tmp_path, total_steps=5, signal_at=3, weights_kept=kept)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["2"]
    killed = tmp_path / "kept/5M_words/best/5.orbax-checkpoint-tmp"
    killed.mkdir(parents=True)
    whole, _ = run(tmp_path, weights_kept=kept)
    assert saved_steps(tmp_path) == [5, 7] and not killed.exists()
    after = dict(zip(range(1, 8), kernels(7), strict=True))
    for name, step in (("2", 2), ("5M_words", 5), ("70%", 5)):
        folder = tmp_path / "kept" / name
        params, at = load_params(folder)
        assert at == step and (folder / "config.json").read_text() == "{}"
        np.testing.assert_array_equal(params["kernel"], after[step])
    np.testing.assert_array_equal(whole.params["kernel"], after[7])


def kernels(steps):
    """The weights after each of so many updates."""
    state, found = create_state({"kernel": jnp.zeros(3)}, TX), []
    for _, batch in zip(range(steps), batches(0), strict=False):
        state, _ = TRAIN_STEP(state, batch, jax.random.key(0))
        found.append(np.array(state.params["kernel"]))
    return found


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
    since, seconds, share = timer.look(3)
    assert since == 0 and timer.look(4)[0] == 3
    assert seconds < 0.5  # the pause does not count
    assert share > 0.5


def test_the_signal_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run(tmp_path, total_steps=2, signal_at=1)
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_a_signal_that_is_repeated_at_once_is_one_wish(request):
    """As `uv run` repeats it; the next one is a second wish."""
    # Where the tests were started in the background it may be one that ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with loop.StopSignal() as stop:
        again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        again.start()
        os.kill(os.getpid(), signal.SIGINT)
        again.join()
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # at once, in this thread


def test_what_a_killed_save_left_is_removed_by_the_writer_alone(tmp_path):
    run(tmp_path, total_steps=2)
    left = [
        tmp_path / name / "9.orbax-checkpoint-tmp" / "state"
        for name in ("checkpoints", "best")
    ]
    for folder in left:
        folder.mkdir(parents=True)
    load_params(tmp_path)
    assert all(folder.exists() for folder in left)
    run(tmp_path, total_steps=3)
    assert not any(folder.parent.exists() for folder in left)


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
    run(tmp_path, total_steps=6, losses=[4.0, 5.0, 6.0], eval_every_steps=1)
    assert saved_steps(tmp_path) == [5, 6]
    assert saved_steps(tmp_path, "best") == [2]
    params, step = load_params(tmp_path)
    assert step == 2
    state, _ = run(tmp_path / "two", total_steps=2)
    np.testing.assert_array_equal(params["kernel"], state.params["kernel"])
    run(tmp_path, total_steps=8, losses=[0.5, 7.0], eval_every_steps=1)
    assert load_params(tmp_path)[1] == 7


def test_a_signal_during_the_best_evaluation_loses_nothing(tmp_path):
    _, received = run(tmp_path, losses=[3.0, None], eval_every_steps=1)
    assert received == signal.SIGTERM
    assert load_params(tmp_path)[1] == 1
    run(tmp_path, 5, losses=[1.0, 2.0, 2.5, 4.0], eval_every_steps=1)
    expected = [(1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5), (5, 4.0)]
    assert evaluations(tmp_path) == expected
    assert load_params(tmp_path)[1] == 2


def test_a_state_is_saved_before_it_is_evaluated(tmp_path):
    def losses():
        yield 3.0
        raise RuntimeError("as with too little memory")

    with pytest.raises(RuntimeError):
        run(tmp_path, losses=losses(), eval_every_steps=2)
    assert saved_steps(tmp_path) == [2, 4]
    run(tmp_path, 4, losses=[1.0], eval_every_steps=2)
    assert evaluations(tmp_path) == [(2, 3.0), (4, 1.0)]
    assert load_params(tmp_path)[1] == 4


def test_best_weights_that_a_kill_lost_are_found_again(tmp_path, monkeypatch):
    """The numbers of the evaluation are there, the weights are not."""
    monkeypatch.setattr(Checkpoints, "keep_best", lambda *_: None)
    run(tmp_path, 2, losses=[1.0], eval_every_steps=2)
    monkeypatch.undo()
    run(tmp_path, 4, losses=[1.0, 2.0], eval_every_steps=2)
    assert evaluations(tmp_path) == [(2, 1.0), (4, 2.0)]
    assert load_params(tmp_path)[1] == 2


def test_a_run_of_before_keeps_its_best(tmp_path):
    """It had the best among the checkpoints, with orbax's metrics."""
    losses = {1: 1.0, 2: 2.0, 3: 3.0}
    manager = ocp.CheckpointManager(
        tmp_path / "checkpoints",
        item_names=("state",),
        options=ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["loss"]),
    )
    state, params = create_state({"kernel": jnp.zeros(3)}, TX), {}
    lines = []
    for step, loss in losses.items():
        state, _ = TRAIN_STEP(state, next(batches(step - 1)), jax.random.key(0))
        params[step] = state.params["kernel"]
        saved = ocp.args.Composite(state=ocp.args.StandardSave(state))
        # A signal had come during the last evaluation, which was then repeated.
        metrics = {"loss": loss} if step < 3 else None
        manager.save(step, args=saved, metrics=metrics)
        lines += [json.dumps({"step": step, "eval/loss": loss}) + "\n"]
    manager.close()
    (tmp_path / "metrics.jsonl").write_text("".join([*lines, lines[-1]]))

    def check_best(step):
        found, at = load_params(tmp_path)
        assert at == step
        np.testing.assert_array_equal(found["kernel"], params[step])

    check_best(1)
    run(tmp_path, 5, losses=[4.0, 5.0], eval_every_steps=1)
    check_best(1)
    assert saved_steps(tmp_path) == [4, 5]
    run(tmp_path, 6, losses=[0.5], eval_every_steps=1)
    assert load_params(tmp_path)[1] == 6


def test_an_evaluation_that_is_no_number_is_never_the_best(tmp_path):
    nan = float("nan")
    run(tmp_path, 1, losses=[nan], eval_every_steps=1)
    assert not saved_steps(tmp_path, "best")
    assert load_params(tmp_path)[1] == 1  # there is no other
    run(tmp_path, 4, losses=[2.0, nan, 3.0], eval_every_steps=1)
    assert load_params(tmp_path)[1] == 2
    assert not loop.is_exhausted({1: nan, 2: 2.0, 3: nan}, 2)
    assert loop.is_exhausted({1: 2.0, 2: nan, 3: 3.0}, 2)
    assert loop.is_exhausted({1: nan, 2: nan}, 2)
    assert not loop.is_exhausted({}, 1)


@pytest.mark.parametrize(
    ("total_steps", "every", "expected"),
    [(28, 9, [9, 18, 28]), (28, 14, [14, 28]), (25, 10, [10, 20, 25]), (3, 5, [3])],
)
def test_the_last_two_evaluations_are_half_an_interval_apart(
    total_steps, every, expected
):
    steps = range(1, total_steps + 1)
    due = [step for step in steps if loop.evaluation_due(step, total_steps, every)]
    assert due == expected


def test_patience_stops_early_and_a_resumption_remembers(tmp_path):
    losses = [3.0, 1.0, 2.0, 1.0, 0.5]  # as low as the best is not better
    state, _ = run(tmp_path, losses=losses, eval_every_steps=1, patience=2)
    assert int(state.step) == 4
    state, _ = run(tmp_path, losses=[0.5], eval_every_steps=1, patience=2)
    assert int(state.step) == 4  # stays stopped
    run(tmp_path / "b", 3, losses=losses[:3], eval_every_steps=1, patience=2)
    state, _ = run(tmp_path / "b", losses=losses[3:], eval_every_steps=1, patience=2)
    assert int(state.step) == 4  # one of the two was before
    # An evaluation that stands there twice is one.
    run(tmp_path / "c", 3, losses=losses[:3], eval_every_steps=1, patience=2)
    path = tmp_path / "c" / "metrics.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    state, _ = run(tmp_path / "c", losses=losses[3:], eval_every_steps=1, patience=2)
    assert int(state.step) == 4


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


@struct.dataclass
class Extended(TrainState):
    """A state with a part that the states of before had not."""

    extra: Any = None


def save_table(folder, shape):
    """Saves a state whose table counts from 1; returns it."""
    table = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    checkpoints = Checkpoints(folder)
    state = create_state({"table": jnp.asarray(table), "bias": jnp.ones(shape[0])}, TX)
    checkpoints.save(state)
    checkpoints.close()
    return state


def table_plan(shape, devices):
    shapes = {
        "table": jax.ShapeDtypeStruct(shape, jnp.float32),
        "bias": jax.ShapeDtypeStruct(shape[:1], jnp.float32),
    }
    mesh = parallel.make_mesh(1, fsdp=devices)
    rules = [("table", PartitionSpec("fsdp"))]
    return parallel.plan_state(shapes, TX, rules, mesh)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("rows", [300, 384])
def test_a_state_is_read_to_where_it_is_planned(tmp_path, devices, rows):
    """No other state is there; a table that is filled up since ends in zeros."""
    saved = save_table(tmp_path, (300, 4))
    plan = table_plan((rows, 4), devices) if rows > 300 else table_plan((300, 4), 1)
    checkpoints = Checkpoints(tmp_path)
    state = checkpoints.restore(plan)
    checkpoints.close()
    assert parallel.places(state) == parallel.places(plan)

    def check(found, before):
        np.testing.assert_array_equal(found[: len(before)], before)
        assert not found[len(before) :].any()

    jax.tree.map(check, *jax.device_get((state.params, saved.params)))
    moments = [each.opt_state[0].mu for each in jax.device_get((state, saved))]
    jax.tree.map(check, *moments)


def test_a_state_of_before_lacks_what_is_none(tmp_path):
    saved = save_table(tmp_path, (2, 3))
    plan = table_plan((2, 3), 1)
    checkpoints = Checkpoints(tmp_path)
    plan = Extended(plan.step, plan.params, plan.opt_state)
    state = checkpoints.restore(plan)
    checkpoints.close()
    assert state.extra is None
    jax.tree.map(np.testing.assert_array_equal, state.params, saved.params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, saved.opt_state)


@pytest.mark.parametrize("shape", [(300, 5), (512, 4), (299, 4), (310, 4)])
def test_a_state_of_another_shape_is_named(tmp_path, shape):
    save_table(tmp_path, (300, 4))
    checkpoints = Checkpoints(tmp_path)
    message = rf"params/table is \(300, 4\) there, \({shape[0]}, {shape[1]}\) here"
    with pytest.raises(UserError, match=message):
        checkpoints.restore(table_plan(shape, 1))
    checkpoints.close()


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
    draw_curves(rows, tmp_path / "c.png", [("entropy", "loss", 4.0)])
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    steps, values = averaged([*range(1, 102)], [1.0, 3.0] * 50 + [7.0])
    assert (len(steps), steps[0], steps[-1]) == (34, 2, 100.5)
    assert (values[0], values[-1]) == (5 / 3, 5)
    assert averaged([], []) == ([], [])


# Damaged checkpoints


@pytest.fixture(scope="module")
def two_states(tmp_path_factory):
    """A run with states 1 and 2, the best of step 1, and arrays in files of their own;
    of each step its state."""
    folder, states = tmp_path_factory.mktemp("whole"), {}
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        table = np.random.default_rng(step).normal(size=(300, 40)).astype(np.float32)
        fresh = create_state({"table": jnp.asarray(table), "bias": jnp.ones(3)}, TX)
        states[step] = fresh.replace(step=jnp.asarray(step))
        checkpoints.save(states[step])
    checkpoints.keep_best(states[1].params, 1, 1.0)
    checkpoints.close()
    return folder, states


def damaged(whole, part, target):
    """Copies of the run, in each a file of `part` missing or cut in half."""
    files = [path for path in sorted((whole / part).rglob("*")) if path.is_file()]
    for file in files:
        for keep in (None, file.stat().st_size // 2):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(whole, target)
            copy = target / file.relative_to(whole)
            if keep is None:
                copy.unlink()
            else:
                copy.write_bytes(file.read_bytes()[:keep])
            yield file.name, keep


def test_damaged_weights_give_way_to_others_with_a_warning(two_states, tmp_path, capfd):
    whole, states = two_states
    replaced = []
    for name, keep in damaged(whole, "best", tmp_path / "run"):
        params, step = load_params(tmp_path / "run")
        told = capfd.readouterr().err
        if step == 2:
            assert "warning: the checkpoint" in told and "best/1 is damaged" in told
            assert "the weights of checkpoints/2 are used" in told
            replaced.append((name, keep is None))
        jax.tree.map(np.testing.assert_array_equal, params, states[step].params)
    for name in ("_METADATA", "manifest.ocdbt"):
        assert {(name, True), (name, False)} <= {*replaced}
    assert ("_sharding", False) in replaced
    shutil.rmtree(tmp_path / "run/checkpoints")
    (tmp_path / "run/best/1/state/_METADATA").write_text("")
    with pytest.raises(UserError, match=r"best/1 is damaged .*there is no other one"):
        load_params(tmp_path / "run")


def test_a_damaged_state_gives_way_to_the_one_before(two_states, tmp_path, capfd):
    whole, states = two_states
    replaced = set()
    for name, _ in damaged(whole, "checkpoints/2", tmp_path / "run"):
        checkpoints, step = Checkpoints(tmp_path / "run"), 2
        try:
            state = checkpoints.restore(states[2])
        except DamagedCheckpoint as damage:
            checkpoints.set_aside(damage)
            checkpoints, step = Checkpoints(tmp_path / "run"), 1
            state = checkpoints.restore(states[1])
            assert re.search(
                r"2 is damaged \(.*now 2\.damaged, and step 1 is",
                capfd.readouterr().err,
            )
            assert (tmp_path / "run/checkpoints/2.damaged").exists()
            replaced.add(name)
        jax.tree.map(np.testing.assert_array_equal, state, states[step])
        checkpoints.save(states[2])  # there is room for it again
        checkpoints.close()
        assert saved_steps(tmp_path / "run") == [1, 2]
    assert {"_METADATA", "_sharding", "manifest.ocdbt"} <= replaced


def test_the_only_state_is_damaged(two_states, tmp_path):
    whole, states = two_states
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/1")
    (tmp_path / "run/checkpoints/2/state/manifest.ocdbt").unlink()
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(DamagedCheckpoint) as raised:
        checkpoints.restore(states[2])
    with pytest.raises(UserError, match=r"2 is damaged .*begin anew in another --wor"):
        checkpoints.set_aside(raised.value)
    assert (tmp_path / "run/checkpoints/2").exists()
