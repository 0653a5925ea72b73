"""Masks by hand, attention against jax.nn and at its edges, dropout by statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from models.attention import (
    INSPECTED,
    Mask,
    attention,
    dropout,
    fused_attention,
    plain_attention,
    random_bits,
    show_weights,
)

BATCH, LENGTH, HEADS, WIDTH = 2, 6, 3, 4
CAUSAL = Mask(None, None, 0, causal=True)


def packed(rows, causal=False):
    """The mask of rows that are packed with the documents of these numbers."""
    segments = jnp.array(rows)
    return Mask(segments, segments, 0, causal)


def projections(seed=0, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    shape = (BATCH, LENGTH, HEADS, WIDTH)
    return [jax.random.normal(key, shape, dtype) for key in keys]


def test_causal_mask_literal():
    mask = CAUSAL.dense(3, 3)
    assert mask.shape == (1, 1, 3, 3)
    np.testing.assert_array_equal(mask[0, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])


def test_causal_mask_of_queries_that_continue_a_cache():
    mask = Mask(None, None, jnp.int32(2), causal=True).dense(2, 5)
    np.testing.assert_array_equal(mask[0, 0], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])


def test_mask_of_packed_rows_literal():
    rows = [[1, 1, 2, 0]]
    np.testing.assert_array_equal(
        packed(rows).dense(4, 4)[0, 0],
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]],
    )
    np.testing.assert_array_equal(
        packed(rows, causal=True).dense(4, 4)[0, 0],
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]],
    )


def test_mask_of_whole_rows_sees_everything():
    assert Mask(None, None, 0, causal=False).dense(3, 4).all()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)]
)
def test_agrees_with_jax_nn(dtype, tolerance):
    query, key, value = projections(dtype=dtype)
    mask = packed([[1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 1]], causal=True)
    ours = attention(query, key, value, mask)
    dense = mask.dense(LENGTH, LENGTH)
    theirs = jax.nn.dot_product_attention(query, key, value, mask=dense)
    assert ours.dtype == dtype
    np.testing.assert_allclose(
        ours.astype(jnp.float32), theirs.astype(jnp.float32), atol=tolerance
    )


class Shown(nn.Module):
    """A module that may show its weights."""

    @nn.compact
    def __call__(self, query, key, mask):
        show_weights(self, query, key, mask)
        return query


def test_weights_that_are_shown_are_those_of_attention():
    """A padded query reads nothing; without who asks there is nothing."""
    query, key, value = projections()
    mask = packed([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]], causal=True)
    _, seen = Shown().apply({}, query, key, mask, mutable=[INSPECTED])
    (weights,) = seen[INSPECTED]["weights"]
    mixed = jnp.einsum("bhts,bshk->bthk", weights, value)
    np.testing.assert_allclose(
        mixed, attention(query, key, value, mask), rtol=1e-5, atol=1e-6
    )
    assert not weights[0, :, 5].any()
    assert Shown().init(jax.random.key(0), query, key, mask) == {}


def test_gradients_agree_with_jax_nn():
    inputs = projections()
    target = projections(seed=1)[0]
    ours = jax.grad(lambda x: (attention(*x, CAUSAL) * target).sum())(inputs)
    theirs = jax.grad(
        lambda x: (jax.nn.dot_product_attention(*x, is_causal=True) * target).sum()
    )(inputs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_query_with_nothing_to_see_gives_zeros_and_no_gradient():
    inputs = projections()
    mask = packed([[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]])

    def total(inputs):
        output = attention(*inputs, mask)
        return (output**2).sum(), output

    gradients, output = jax.grad(total, has_aux=True)(inputs)
    np.testing.assert_array_equal(output[0, 4:], 0)
    np.testing.assert_array_equal(output[1], 0)
    assert np.abs(output[0, :4]).min() > 0
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[0, 4:], 0)
        np.testing.assert_array_equal(gradient[1], 0)
        assert np.abs(gradient[0, :4]).max() > 0


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows", [None, [[1, 1, 2, 2, 2, 0], [1, 1, 1, 0, 0, 0]]])
def test_fused_attention_equals_plain(rows, causal):
    """By jax.nn's "xla"; its "cudnn", which needs a GPU, is compared in benchmarks."""
    inputs = projections()
    mask = packed(rows, causal) if rows else Mask(None, None, 0, causal)

    def run(attend, *how):
        def total(inputs):
            output = attend(*inputs, mask, *how)
            return (output**2).sum(), output

        return jax.grad(total, has_aux=True)(inputs)

    for ours, theirs in zip(
        jax.tree.leaves(run(fused_attention, "xla")),
        jax.tree.leaves(run(plain_attention, 0.0, None, None)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("rows", [None, [[0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0]]])
def test_fused_attention_of_queries_that_continue_a_cache(rows):
    query, key, value = projections()
    segments = jnp.array(rows) if rows else None
    own = None if segments is None else segments[:, 3:5]
    mask = Mask(own, segments, jnp.int32(3), causal=True)
    ours = fused_attention(query[:, :2], key, value, mask, "xla")
    plain = plain_attention(query[:, :2], key, value, mask, 0.0, None, None)
    np.testing.assert_allclose(ours, plain, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_a_fused_kernel_of_whole_rows_gets_no_mask(causal, monkeypatch):
    given = {}

    def record(query, key, value, **named):
        given.update(named)
        return query

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    mask = Mask(None, None, 0, causal)
    program = jax.make_jaxpr(lambda *x: fused_attention(*x, mask, "cudnn"))(
        *projections()
    )
    assert given == {"is_causal": causal, "implementation": "cudnn"}
    assert not program.eqns  # nothing of [B, 1, T, S] is made on the way
    fused_attention(*projections(), packed([[1] * 6, [2] * 6], causal), "cudnn")
    assert given["mask"].shape == (BATCH, 1, LENGTH, LENGTH)


def test_large_scores_stay_finite():
    query, key, value = projections()
    output = attention(1e4 * query, 1e4 * key, value, CAUSAL)
    assert np.isfinite(output).all()
    assert np.abs(output).max() <= np.abs(value).max() + 1e-5


def test_dropout_acts_on_the_probabilities():
    """With the identity for values the output is the dropped probabilities."""
    length, rate = 64, 0.25
    query, key = jax.random.normal(jax.random.key(0), (2, 1, length, 1, length))
    value = jnp.eye(length)[None, :, None, :]
    mask = Mask(None, None, 0, causal=False)
    whole = attention(query, key, value, mask)
    dropped = attention(query, key, value, mask, rate, jax.random.key(1))
    kept = np.asarray(dropped) != 0
    np.testing.assert_allclose(
        dropped[kept], whole[kept] / (1 - rate), rtol=1e-5, atol=1e-9
    )
    assert abs(kept.mean() - (1 - rate)) < 0.03


def test_dropout_keeps_mean_and_scale():
    ones = jnp.ones((1000, 1000))
    for rate in (0.1, 0.5):
        dropped = np.asarray(dropout(ones, rate, jax.random.key(0)))
        assert set(np.unique(dropped)) == {0, np.float32(1 / np.float32(1 - rate))}
        # Five standard deviations of the mean of a million draws.
        tolerance = 5 * np.sqrt(rate * (1 - rate)) / 1000
        assert abs((dropped == 0).mean() - rate) < tolerance


def test_dropout_off():
    values = jnp.arange(4.0)
    assert dropout(values, 0.0, jax.random.key(0)) is values
    assert dropout(values, 0.5, None) is values


def test_dropout_draws_by_the_numbers_of_the_rows():
    """A part of a batch with its rows' numbers, in any order, draws what they drew."""
    values, key = jnp.ones((6, 5, 7)), jax.random.key(0)
    whole = dropout(values, 0.5, key)
    np.testing.assert_array_equal(whole, dropout(values, 0.5, key, jnp.arange(6)))
    rows = jnp.array([4, 1, 5])
    np.testing.assert_array_equal(whole[rows], dropout(values[rows], 0.5, key, rows))
    assert (whole[rows] != dropout(values[rows], 0.5, key)).any()


def bits_of(seed, shape=(512, 1024)):
    return np.asarray(random_bits(jax.random.key(seed), shape))


def test_random_bits_are_uniform():
    bits = bits_of(0)
    half_width = 5 * 0.5 / np.sqrt(bits.size)
    for position in range(32):
        assert abs(((bits >> position) & 1).mean() - 0.5) < half_width, position
    counts = np.bincount((bits >> 24).ravel(), minlength=256)
    expected = bits.size / 256
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # 255 degrees of freedom: mean 255, standard deviation 22.6.
    assert abs(chi_square - 255) < 5 * 22.6
    # A hash of distinct indices by invertible steps repeats nothing.
    assert np.unique(bits).size == bits.size


def test_random_bits_of_neighbours_and_of_keys_are_independent():
    for seed in range(5):
        first = bits_of(seed) < 0.1 * 2**32
        others = {
            "other key": bits_of(seed + 1000) < 0.1 * 2**32,
            "shifted by a column": np.roll(first, 1, axis=1),
            "shifted by a row": np.roll(first, 1, axis=0),
            "shifted by 64 columns": np.roll(first, 64, axis=1),
        }
        for name, other in others.items():
            both = (first & other).mean()
            assert abs(both - 0.01) < 5 * 0.1 / np.sqrt(first.size), (seed, name)


def test_random_bits_are_the_same_on_any_number_of_devices():
    axis_types = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=axis_types)
    sharding = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    key = jax.random.key(3)
    one = jax.jit(lambda key: random_bits(key, (8, 5, 6)))(key)
    many = jax.jit(lambda key: random_bits(key, (8, 5, 6)), out_shardings=sharding)(key)
    assert len(many.sharding.device_set) == 8
    np.testing.assert_array_equal(one, many)
