"""The step is the same however a batch is cut; tested without any config."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from errors import UserError
from training import parallel
from training.step import create_state, make_train_step, term_means

FEATURES, ROWS = 4, 16


def loss_terms(params, batch, dropout_key):
    """A weighted square loss, with dropout on the input, and a second term."""
    x = batch["x"]
    if dropout_key is not None and "drop" in params:
        x = x * jax.random.bernoulli(dropout_key, 0.5, x.shape)
    error = (x @ params["kernel"] - batch["y"]) ** 2
    terms = {
        "square": (
            jnp.sum(error * batch["weights"]),
            jnp.sum(batch["weights"]),
            {"small": jnp.sum(batch["weights"] * (error < 1.0))},
        )
    }
    label = (x @ params["kernel"]) * batch["label_weights"]
    terms["label"] = (jnp.sum(label), jnp.sum(batch["label_weights"]), {})
    return terms


@pytest.fixture
def batch():
    generator = np.random.default_rng(0)
    weights = generator.random(ROWS).astype(np.float32)
    weights[:7] = 0.0  # whole devices and micro-batches have nothing to predict
    return {
        "x": generator.normal(size=(ROWS, FEATURES)).astype(np.float32),
        "y": generator.normal(size=ROWS).astype(np.float32),
        "weights": weights,
        "label_weights": (generator.random(ROWS) < 0.3).astype(np.float32),
    }


def run(batch, *, devices, micro_batches, steps=3, drop=False):
    mesh = parallel.make_mesh(devices)
    tx = optax.adam(0.1)
    params = {"kernel": jnp.linspace(-1.0, 1.0, FEATURES)}
    if drop:
        params["drop"] = jnp.zeros(())
    plan = parallel.plan_state(params, tx, (), mesh)
    step = parallel.compile_train_step(
        make_train_step(loss_terms, tx, lambda _: 0.1, micro_batches=micro_batches),
        plan,
        parallel.plan_batch(batch, ROWS, mesh),
        mesh,
        None,
    )
    state = parallel.start_state(params, tx, plan)
    history = []
    for _ in range(steps):
        state, metrics = step(
            state, parallel.shard_batch(batch, ROWS, mesh), jax.random.key(0)
        )
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def test_loss_is_each_sum_over_its_weight_of_the_whole_batch(batch):
    _, history = run(batch, devices=1, micro_batches=1, steps=1)
    prediction = batch["x"] @ np.linspace(-1.0, 1.0, FEATURES)
    error = (prediction - batch["y"]) ** 2
    square = np.sum(error * batch["weights"]) / np.sum(batch["weights"])
    label = np.sum(prediction * batch["label_weights"]) / np.sum(batch["label_weights"])
    small = np.sum(batch["weights"] * (error < 1)) / np.sum(batch["weights"])
    np.testing.assert_allclose(history[0]["square_loss"], square, rtol=1e-5)
    np.testing.assert_allclose(history[0]["label_loss"], label, rtol=1e-5)
    np.testing.assert_allclose(history[0]["loss"], square + label, rtol=1e-5)
    np.testing.assert_allclose(history[0]["square_small"], small, rtol=1e-5)


@pytest.mark.parametrize(
    ("devices", "micro_batches"), [(1, 2), (1, 8), (8, 1), (8, 2), (4, 4)]
)
def test_cutting_the_batch_changes_nothing(batch, devices, micro_batches):
    whole, expected = run(batch, devices=1, micro_batches=1)
    state, history = run(batch, devices=devices, micro_batches=micro_batches)
    for one, other in zip(expected, history, strict=True):
        for name, value in one.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(
        state.params["kernel"], whole.params["kernel"], rtol=1e-5, atol=1e-6
    )


def test_dropout_does_not_depend_on_the_devices_but_on_the_step(batch):
    _, one = run(batch, devices=1, micro_batches=1, drop=True)
    _, eight = run(batch, devices=8, micro_batches=1, drop=True)
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    tx = optax.sgd(0.0)  # the parameters stay: only the mask can change the loss
    params = {"kernel": jnp.ones(FEATURES), "drop": jnp.zeros(())}
    state = create_state(params, tx)
    step = jax.jit(make_train_step(loss_terms, tx, lambda _: 0.0, micro_batches=1))
    first, metrics = step(state, batch, jax.random.key(0))
    _, again = step(state, batch, jax.random.key(0))
    _, later = step(first, batch, jax.random.key(0))
    assert float(metrics["loss"]) == float(again["loss"]) != float(later["loss"])


def test_micro_batches_draw_different_dropout(batch):
    same = {name: np.repeat(rows[8:9], ROWS, axis=0) for name, rows in batch.items()}
    seen = []

    def spy(params, batch, key):
        terms = loss_terms(params, batch, key)
        if key is not None:
            jax.debug.callback(lambda x: seen.append(float(x)), terms["square"][0])
        return terms

    tx = optax.sgd(0.0)
    params = {"kernel": jnp.ones(FEATURES), "drop": jnp.zeros(())}
    step = make_train_step(spy, tx, lambda _: 0.0, micro_batches=4)
    jax.block_until_ready(
        jax.jit(step)(create_state(params, tx), same, jax.random.key(0))
    )
    jax.effects_barrier()
    assert len(set(seen)) == 4


def test_weights_that_sum_to_less_than_one_are_divided_by_too(batch):
    batch["weights"] = np.where(np.arange(ROWS) == 9, 0.25, 0.0).astype(np.float32)
    _, history = run(batch, devices=1, micro_batches=2, steps=1)
    error = batch["x"][9] @ np.linspace(-1.0, 1.0, FEATURES) - batch["y"][9]
    np.testing.assert_allclose(history[0]["square_loss"], error**2, rtol=1e-5)


def test_a_batch_with_nothing_to_predict_changes_nothing_and_is_finite(batch):
    batch["weights"][:] = 0.0
    batch["label_weights"][:] = 0.0
    state, history = run(batch, devices=1, micro_batches=1, steps=1)
    assert history[0]["loss"] == 0.0
    before = jnp.linspace(-1.0, 1.0, FEATURES)
    np.testing.assert_array_equal(state.params["kernel"], before)


def test_three_updates_leave_step_three(batch):
    state, _ = run(batch, devices=1, micro_batches=1, steps=3)
    assert int(state.step) == 3


def test_means_of_an_empty_term_are_zero():
    zero = jnp.zeros(())
    means = term_means({"a": (zero, zero, {"accuracy": zero})})
    assert {name: float(value) for name, value in means.items()} == {
        "loss": 0.0,
        "a_loss": 0.0,
        "a_accuracy": 0.0,
    }


def test_uneven_batches_and_missing_devices_are_named():
    mesh = parallel.make_mesh(8)
    parallel.check_batch_size(16, mesh, 2)
    with pytest.raises(UserError, match=r"data.batch_size=20 .* multiple of 16"):
        parallel.check_batch_size(20, mesh, 2)
    for sizes, message in (
        ((9,), r"run\.mesh\.data=9 .* 8 devices \(cpu\): .* at most 8"),
        ((-1, 3), r"run\.mesh\.fsdp=3 .* 8 devices \(cpu\): .* all of them"),
        ((-1, -1), r"one of them may be -1"),
        ((1, 1, 0), r"run\.mesh\.tensor=0: each must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            parallel.make_mesh(*sizes)
