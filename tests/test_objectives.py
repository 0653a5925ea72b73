"""Objectives by hand: sums, weights, accuracy, gradients, precision."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from objectives.cross_entropy import in_chunks, weighted_cross_entropy

PROBABILITIES = [
    [[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]],
    [[0.3, 0.3, 0.4], [0.8, 0.1, 0.1]],
]
LOGITS = jnp.log(jnp.array(PROBABILITIES))
TARGETS = jnp.array([[0, 1], [2, 0]])
WEIGHTS = jnp.array([[1.0, 1.0], [0.5, 0.0]])


@pytest.mark.parametrize("shift", [0.0, 5.0, -1000.0])
def test_by_hand(shift):
    """Constant shifts of the logits do not matter; the last slot has weight 0."""
    loss, weight, metrics = weighted_cross_entropy(LOGITS + shift, TARGETS, WEIGHTS)
    by_hand = -math.log(0.5) - math.log(0.2) - 0.5 * math.log(0.4)
    np.testing.assert_allclose(loss, by_hand, rtol=1e-6 if shift == 0 else 1e-3)
    assert weight == 2.5
    assert set(metrics) == {"accuracy"}
    assert metrics["accuracy"] == 1.5  # the first and the third are right


def test_next_sentence_by_hand():
    logits = jnp.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    labels, weights = jnp.array([0, 0, 1]), jnp.array([1.0, 1.0, 0.0])
    loss, weight, metrics = weighted_cross_entropy(logits, labels, weights)
    by_hand = math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3))
    np.testing.assert_allclose(loss, by_hand, rtol=1e-6)
    assert (weight, metrics["accuracy"]) == (2.0, 1.0)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    loss, weight, _ = weighted_cross_entropy(
        jnp.zeros((2, 3, 50)), jnp.full((2, 3), 7), jnp.ones((2, 3))
    )
    np.testing.assert_allclose(loss / weight, math.log(50), rtol=1e-6)


def test_accuracy_counts_what_would_be_predicted():
    """Of logits that tie argmax takes the first: constant ones know nothing."""
    ties = jnp.zeros((5, 4)), jnp.array([[0.0, 1.0, 1.0, 0.5]]).repeat(4, axis=0)
    logits = jnp.concatenate(ties)
    targets = jnp.array([0, 1, 2, 3, 3, 0, 1, 2, 3])
    right = [
        weighted_cross_entropy(row, target, jnp.ones(()))[2]["accuracy"]
        for row, target in zip(logits, targets, strict=True)
    ]
    np.testing.assert_array_equal(right, logits.argmax(axis=-1) == targets)
    assert sum(right) == 2


def test_weight_zero_rows_change_nothing():
    more = [
        jnp.concatenate([LOGITS, 100 * LOGITS[:1]]),
        jnp.concatenate([TARGETS, TARGETS[:1]]),
        jnp.concatenate([WEIGHTS, jnp.zeros((1, 2))]),
    ]
    for one, other in zip(
        jax.tree.leaves(weighted_cross_entropy(LOGITS, TARGETS, WEIGHTS)),
        jax.tree.leaves(weighted_cross_entropy(*more)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    gradient = jax.grad(lambda logits: weighted_cross_entropy(logits, *more[1:])[0])(
        more[0]
    )
    np.testing.assert_array_equal(gradient[2], 0)


def test_all_weights_zero():
    arguments = TARGETS, jnp.zeros((2, 2))
    assert jax.tree.leaves(weighted_cross_entropy(LOGITS, *arguments)) == [0, 0, 0]
    gradient = jax.grad(lambda logits: weighted_cross_entropy(logits, *arguments)[0])(
        LOGITS
    )
    np.testing.assert_array_equal(gradient, 0)


def test_gradient_is_softmax_minus_one_hot():
    logits = jax.random.normal(jax.random.key(0), (2, 2, 3))
    gradient = jax.grad(
        lambda logits: weighted_cross_entropy(logits, TARGETS, WEIGHTS)[0]
    )(logits)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    by_hand = (shares - np.eye(3)[np.asarray(TARGETS)]) * np.asarray(WEIGHTS)[..., None]
    np.testing.assert_allclose(gradient, by_hand, atol=1e-6)


def test_next_sentence_gradient():
    logits = jnp.array([[2.0, 1.0], [0.0, 3.0]])
    labels, weights = jnp.array([0, 1]), jnp.array([1.0, 0.5])
    gradient = jax.grad(lambda x: weighted_cross_entropy(x, labels, weights)[0])(logits)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    by_hand = (shares - np.eye(2)) * np.array([[1.0], [0.5]])
    np.testing.assert_allclose(gradient, by_hand, atol=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
    """Summing 50,000 exponentials in bfloat16 would stop growing at 256."""
    logits = jnp.zeros((1, 1, 50_000), jnp.bfloat16)
    results = weighted_cross_entropy(logits, jnp.array([[3]]), jnp.ones((1, 1)))
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(results[0], math.log(50_000), rtol=1e-6)


def test_micro_batches_add_up():
    whole = weighted_cross_entropy(LOGITS, TARGETS, WEIGHTS)
    parts = [
        weighted_cross_entropy(
            LOGITS[i : i + 1], TARGETS[i : i + 1], WEIGHTS[i : i + 1]
        )
        for i in range(2)
    ]
    jax.tree.map(
        lambda whole, *parts: np.testing.assert_allclose(whole, sum(parts), rtol=1e-6),
        whole,
        *parts,
    )


def test_large_logits_stay_finite():
    logits = jnp.array([[[1e4, -1e4, 0.0]]])
    loss, _, _ = weighted_cross_entropy(logits, jnp.array([[1]]), jnp.ones((1, 1)))
    assert loss == 2e4


def test_target_outside_the_vocabulary_is_not_hidden():
    """NaN, which stops a run, and not the loss of some other word."""
    loss, _, _ = weighted_cross_entropy(LOGITS, TARGETS + 3, WEIGHTS)
    assert np.isnan(loss)


@pytest.mark.parametrize("chunks", [2, 3, 7])
def test_logits_in_chunks_give_the_same_loss_and_gradient(chunks):
    generator = np.random.default_rng(0)
    hidden = jnp.asarray(generator.normal(size=(2, 7, 4)), jnp.float32)
    table = jnp.asarray(generator.normal(size=(11, 4)), jnp.float32)
    targets = jnp.asarray(generator.integers(11, size=(2, 7)), jnp.int32)
    targets = targets.at[:, :3].set((hidden @ table.T).argmax(axis=-1)[:, :3])
    weights = jnp.asarray(generator.random((2, 7)) < 0.7, jnp.float32)

    def loss(hidden, table, chunks):
        sums = in_chunks(
            weighted_cross_entropy,
            lambda h: h @ table.T,
            hidden,
            targets,
            weights,
            chunks,
        )
        return sums[0], sums[1:]

    results = [
        jax.jit(
            jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2
        )(hidden, table, count)
        for count in (1, chunks)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results
    )
    (_, (weight, metrics)), _ = results[1]
    assert weight == weights.sum() and 0 < metrics["accuracy"] < weight


def test_logits_in_chunks_never_exist_as_a_whole():
    def gradient(chunks):
        def loss(hidden, table):
            shape = hidden.shape[:2]
            sums = in_chunks(
                weighted_cross_entropy,
                lambda h: h @ table.T,
                hidden,
                jnp.zeros(shape, jnp.int32),
                jnp.ones(shape),
                chunks,
            )
            return sums[0]

        arguments = jnp.ones((2, 8, 4)), jnp.ones((97, 4))
        return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).as_text()

    assert "2x8x97xf32" in gradient(1)
    assert "2x8x97xf32" not in gradient(4)
    assert "2x2x97xf32" in gradient(4)
