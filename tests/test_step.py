"""The step is the same however a batch is cut; tested without any config."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from configs import gpt_mini
from errors import UserError
from pretraining.language_model import word_loss
from training import parallel
from training.checkpoints import Checkpoints
from training.optimizers import (
    assign_groups,
    make_optimizer,
    make_schedule,
    parse_groups,
)
from training.runs import init_params, shapes_of
from training.step import create_state, make_train_step, term_means

FEATURES, ROWS = 4, 16


def loss_terms(params, batch, dropout_key):
    """A weighted square loss, with dropout on the input by rows, and a second term."""
    x = batch["x"]
    if dropout_key is not None:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(dropout_key, batch["rows"])
        x = x * jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (FEATURES,)))(keys)
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


def without_dropout(params, batch, key):
    del key
    return loss_terms(params, batch, None)


def run(
    batch, *, devices, micro_batches, steps=3, mode="jit", terms=loss_terms, params=None
):
    mesh = parallel.make_mesh(devices)
    tx = optax.adam(0.1)
    if params is None:
        params = {"kernel": jnp.linspace(-1.0, 1.0, FEATURES)}
    plan = parallel.plan_state(params, tx, (), mesh)
    axis = parallel.mapped_axis(mode, mesh)
    step = parallel.compile_train_step(
        make_train_step(
            terms, tx, lambda _: 0.1, micro_batches=micro_batches, axis=axis
        ),
        plan,
        parallel.plan_batch(batch, ROWS, mesh),
        mesh,
        axis,
    )
    state = parallel.start_state(jax.tree.map(jnp.copy, params), tx, plan)
    history = []
    for _ in range(steps):
        state, metrics = step(
            state, parallel.shard_batch(batch, ROWS, mesh), jax.random.key(0)
        )
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def test_loss_is_each_sum_over_its_weight_of_the_whole_batch(batch):
    _, history = run(batch, devices=1, micro_batches=1, steps=1, terms=without_dropout)
    prediction = batch["x"] @ np.linspace(-1.0, 1.0, FEATURES)
    error = (prediction - batch["y"]) ** 2
    square = np.sum(error * batch["weights"]) / np.sum(batch["weights"])
    label = np.sum(prediction * batch["label_weights"]) / np.sum(batch["label_weights"])
    small = np.sum(batch["weights"] * (error < 1)) / np.sum(batch["weights"])
    np.testing.assert_allclose(history[0]["square_loss"], square, rtol=1e-5)
    np.testing.assert_allclose(history[0]["label_loss"], label, rtol=1e-5)
    np.testing.assert_allclose(history[0]["loss"], square + label, rtol=1e-5)
    np.testing.assert_allclose(history[0]["square_small"], small, rtol=1e-5)


LAYOUTS = [(1, 2, "jit"), (1, 8, "jit"), (8, 1, "jit"), (8, 2, "jit"), (4, 4, "jit")]
LAYOUTS += [(8, 1, "pmap"), (2, 4, "pmap")]


@pytest.mark.parametrize(("devices", "micro_batches", "mode"), LAYOUTS)
def test_cutting_the_batch_changes_nothing(batch, devices, micro_batches, mode):
    """Nor what dropout draws."""
    whole, expected = run(batch, devices=1, micro_batches=1)
    state, history = run(batch, devices=devices, micro_batches=micro_batches, mode=mode)
    for one, other in zip(expected, history, strict=True):
        for name, value in one.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(
        state.params["kernel"], whole.params["kernel"], rtol=1e-5, atol=1e-6
    )


def test_dropout_depends_on_the_step(batch):
    tx = optax.sgd(0.0)  # the parameters stay: only the mask can change the loss
    state = create_state({"kernel": jnp.ones(FEATURES)}, tx)
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
    params = {"kernel": jnp.ones(FEATURES)}
    step = make_train_step(spy, tx, lambda _: 0.0, micro_batches=4)
    jax.block_until_ready(
        jax.jit(step)(create_state(params, tx), same, jax.random.key(0))
    )
    jax.effects_barrier()
    assert len(set(seen)) == 4


def test_weights_that_sum_to_less_than_one_are_divided_by_too(batch):
    batch["weights"] = np.where(np.arange(ROWS) == 9, 0.25, 0.0).astype(np.float32)
    _, history = run(batch, devices=1, micro_batches=2, steps=1, terms=without_dropout)
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


# What a state, a batch and a trial can be.


def average(state):
    """Of the parameters after each update, half the weight to the last one."""
    return jax.tree.map(lambda a, p: 0.5 * a + 0.5 * p, state.extra, state.params)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_rows_carry_on_to_the_next_batch(batch, micro_batches):
    """Each row its own, in its place, whatever parts a batch is cut into."""
    tx, start = optax.sgd(0.1), {"kernel": jnp.ones(FEATURES)}

    def terms(params, batch, key):
        del key
        seen = batch["carried"] + batch["x"] @ params["kernel"]
        return {"seen": (seen.sum(), float(len(seen)), {})}, jax.lax.stop_gradient(seen)

    step = make_train_step(
        terms, tx, lambda _: 0.1, micro_batches=micro_batches, carries=True
    )
    state = create_state(start, tx, jnp.arange(ROWS, dtype=float))
    expected = np.arange(ROWS)
    for _ in range(2):
        expected = expected + batch["x"] @ np.asarray(state.params["kernel"])
        state, metrics = jax.jit(step)(state, batch, jax.random.key(0))
        np.testing.assert_allclose(state.extra, expected, rtol=1e-5)
        np.testing.assert_allclose(metrics["loss"], expected.mean(), rtol=1e-5)


def test_averaged_weights_are_carried_saved_and_resumed(batch, tmp_path):
    tx = optax.adam(0.1)
    start = {"kernel": jnp.linspace(-1.0, 1.0, FEATURES)}
    step = jax.jit(
        make_train_step(
            loss_terms, tx, lambda _: 0.1, micro_batches=2, next_extra=average
        )
    )
    state, key = create_state(start, tx, extra=start), jax.random.key(0)
    by_hand = np.linspace(-1.0, 1.0, FEATURES)
    checkpoints = Checkpoints(tmp_path)
    for number in range(3):
        if number == 2:
            checkpoints.save(state)
            checkpoints.wait()
            state = checkpoints.restore(create_state(start, tx, extra=start))
        state, _ = step(state, batch, key)
        by_hand = (by_hand + np.asarray(state.params["kernel"])) / 2
    checkpoints.close()
    np.testing.assert_allclose(state.extra["kernel"], by_hand, rtol=1e-5)
    plain, _ = run(batch, devices=1, micro_batches=1)
    np.testing.assert_allclose(
        state.params["kernel"], plain.params["kernel"], rtol=1e-5, atol=1e-6
    )


@pytest.fixture(scope="module")
def model():
    """A small GPT with dropout."""
    fields = gpt_mini.get_config("tiny").model
    fields.update(precision="float32", num_layers=1, vocab_size=64)
    fields.update(embedding_dropout=0.1, residual_dropout=0.1, attention_dropout=0.1)
    return models.build(fields)


def words(length, seed):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, 64, (ROWS, length), np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "weights": (generator.random(tokens.shape) < 0.5).astype(np.float32),
    }


@pytest.fixture
def two_ways():
    """Rows whose next words are predicted, and rows of which three words are."""
    causal, masked = words(8, 0), words(12, 1)
    causal["weights"][:5] = 0.0
    masked |= {name: masked[name][:, :3] for name in ("targets", "weights")}
    places = np.sort(np.random.default_rng(2).integers(0, 12, (ROWS, 3), np.int32))
    return {"causal": causal, "masked": masked | {"predict_positions": places}}


@pytest.mark.parametrize(
    ("devices", "micro_batches", "mode"), [(1, 2, "jit"), (8, 2, "pmap")]
)
def test_a_batch_of_two_batches_trains_one_model_two_ways(
    model, two_ways, devices, micro_batches, mode
):
    def terms(params, batch, key):
        causal = model.apply(params, batch["causal"], key)["causal_lm"]
        masked = model.apply(params, batch["masked"], key)["causal_lm"]
        places = batch["masked"]["predict_positions"][..., None]
        states = jnp.take_along_axis(masked.states, places, axis=1)
        return {
            "causal": word_loss(causal, batch["causal"], 1),
            "masked": word_loss(masked._replace(states=states), batch["masked"], 1),
        }

    params = init_params(model, two_ways["causal"], 0)
    settings = {"terms": terms, "params": params}
    _, expected = run(two_ways, devices=1, micro_batches=1, **settings)
    _, history = run(
        two_ways, devices=devices, micro_batches=micro_batches, mode=mode, **settings
    )
    for one, other in zip(expected, history, strict=True):
        for name in ("causal_loss", "masked_loss", "loss"):
            np.testing.assert_allclose(other[name], one[name], rtol=1e-5)
    assert expected[2]["causal_loss"] < expected[0]["causal_loss"]
    assert expected[2]["masked_loss"] < expected[0]["masked_loss"]


def test_trials_of_other_rates_and_seeds_as_one_step_equal_each_alone(model):
    batch = jax.tree.map(jnp.asarray, words(8, 0))
    groups = assign_groups(
        shapes_of(model, batch),
        parse_groups(((".*", {}),)),
        weight_decay=0.01,
        no_decay=(),
    )

    def terms(params, batch, key):
        output = model.apply(params, batch, key)["causal_lm"]
        return {"lm": word_loss(output, batch, 1)}

    def made(trial):
        schedule = {
            "schedule": "linear",
            "learning_rate": trial["learning_rate"],
            "end_learning_rate": 0.0,
            "warmup_steps": 1,
            "total_steps": 4,
        }
        tx = make_optimizer(
            groups, schedule, b1=0.9, b2=0.99, epsilon=1e-3, clip_norm=1.0, adam="adamw"
        )
        params = init_params(model, batch, trial["seed"])
        step = make_train_step(terms, tx, make_schedule(**schedule), micro_batches=1)
        return create_state(params, tx), step

    def one(trial, state):
        return made(trial)[1](state, batch, jax.random.key(trial["seed"]))

    def after_two(started, step, trial):
        state, losses = started(trial), []
        for _ in range(2):
            state, metrics = step(trial, state)
            losses.append(metrics["loss"])
        return state.params, losses

    start = jax.jit(lambda trial: made(trial)[0])
    trials = {"learning_rate": jnp.float32([0.01, 0.1]), "seed": jnp.arange(2)}
    together = after_two(jax.vmap(start), jax.jit(jax.vmap(one)), trials)
    assert len({*np.ravel(together[1]).tolist()}) == 4
    for i in range(2):
        alone = after_two(start, jax.jit(one), jax.tree.map(lambda x: x[i], trials))  # noqa: B023
        for found, expected in zip(
            *map(jax.tree.leaves, (together, alone)), strict=True
        ):
            np.testing.assert_allclose(found[i], expected, rtol=1e-5, atol=1e-6)


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
