"""Schedules at named steps; decay and clipping by their effect."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from errors import UserError
from training.optimizers import decay_mask, make_optimizer, make_schedule

NO_DECAY = (r".*/bias", r".*/scale")


def schedule(shape, **changes):
    settings = {
        "schedule": shape,
        "learning_rate": 1.0,
        "end_learning_rate": 0.1,
        "warmup_steps": 10,
        "total_steps": 110,
    }
    return make_schedule(**(settings | changes))


def optimizer(rate, **changes):
    settings = {
        "b1": 0.9,
        "b2": 0.999,
        "epsilon": 1e-8,
        "weight_decay": 0.1,
        "no_decay": NO_DECAY,
        "clip_norm": 1.0,
    }
    return make_optimizer(lambda _: rate, **(settings | changes))


@pytest.fixture
def params():
    return {
        "layer_0": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)},
        "norm": {"scale": jnp.full(2, 2.0), "bias": jnp.full(2, 2.0)},
        "embeddings": {"token": {"embedding": jnp.full((3, 2), 2.0)}},
    }


@pytest.mark.parametrize(
    ("shape", "halfway", "last"),
    [
        ("linear", 0.55, 0.1),
        ("cosine", 0.55, 0.1),
        ("constant", 1.0, 1.0),
        ("inverse_square_root", (10 / 60) ** 0.5, (10 / 110) ** 0.5),
    ],
)
def test_schedule_at_named_updates(shape, halfway, last):
    rate = schedule(shape)
    found = [float(rate(step)) for step in (0, 4, 9, 59, 109)]
    np.testing.assert_allclose(found, [0.1, 0.5, 1.0, halfway, last], rtol=1e-6)


def test_cosine_is_no_line():
    rate = schedule("cosine")
    quarter = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi / 4))
    np.testing.assert_allclose(float(rate(34)), quarter, rtol=1e-6)


def test_schedule_without_warm_up_starts_below_the_peak_by_one_update():
    rate = schedule("linear", warmup_steps=0, total_steps=10, end_learning_rate=0.0)
    np.testing.assert_allclose(float(rate(0)), 0.9, rtol=1e-6)
    np.testing.assert_allclose(float(rate(9)), 0.0, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"schedule": "cosin"}, "optim.schedule='cosin'"),
        ({"schedule": "linear", "warmup_steps": 110}, "optim.warmup_steps=110"),
        ({"schedule": "inverse_square_root", "warmup_steps": 0}, "warmup_steps=0"),
    ],
)
def test_bad_schedules_name_the_setting(changes, culprit):
    with pytest.raises(UserError, match=culprit):
        schedule(changes.pop("schedule"), **changes)


def test_zero_gradient_shrinks_decayed_parameters_by_rate_times_decay(params):
    tx = optimizer(0.5)
    updates, _ = tx.update(
        jax.tree.map(jnp.zeros_like, params), tx.init(params), params
    )
    after = optax.apply_updates(params, updates)
    kept = 2.0 * (1 - 0.5 * 0.1)
    np.testing.assert_allclose(after["layer_0"]["kernel"], kept, rtol=1e-6)
    np.testing.assert_allclose(
        after["embeddings"]["token"]["embedding"], kept, rtol=1e-6
    )
    for group, name in (("layer_0", "bias"), ("norm", "scale"), ("norm", "bias")):
        np.testing.assert_array_equal(after[group][name], 2.0)


def test_a_no_decay_pattern_that_matches_nothing_is_named(params):
    with pytest.raises(UserError, match="gamma"):
        decay_mask(params, (".*/gamma",))


def test_two_updates_equal_adamw_written_out_in_numpy(params):
    rate, decay, b1, b2, epsilon = 0.01, 0.1, 0.9, 0.999, 1e-8
    tx = optimizer(rate)
    state, generator = tx.init(params), np.random.default_rng(0)
    mask = jax.tree.leaves(decay_mask(params, NO_DECAY))
    expected = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    m, v = [0.0] * len(expected), [0.0] * len(expected)
    for t in (1, 2):
        grads = [generator.normal(size=p.shape).astype(np.float32) for p in expected]
        tree = jax.tree.unflatten(jax.tree.structure(params), grads)
        updates, state = tx.update(tree, state, params)
        params = optax.apply_updates(params, updates)
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        assert norm > 1  # the clip, over all parameters together, has something to do
        for i, grad in enumerate(grads):
            m[i] = b1 * m[i] + (1 - b1) * grad / norm
            v[i] = b2 * v[i] + (1 - b2) * (grad / norm) ** 2
            update = (m[i] / (1 - b1**t)) / (np.sqrt(v[i] / (1 - b2**t)) + epsilon)
            expected[i] = expected[i] - rate * (update + mask[i] * decay * expected[i])
    for found, value in zip(jax.tree.leaves(params), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=2e-5)
