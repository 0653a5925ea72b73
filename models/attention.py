"""Attention: masks, dropout, the attention function and the multi-head module.

Axes: B batch, T queries, S keys, H heads, K width of a head, D width of the model.
Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import Initializer
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

KeyValues = dict[str, Float[Array, "B S H K"]]  # {"key": ..., "value": ...}


def causal_mask(
    query_index: Int[Array, " T"], key_index: Int[Array, " S"]
) -> Bool[Array, "1 1 T S"]:
    """True where the key is the query itself or stands before it."""
    return (key_index[None, :] <= query_index[:, None])[None, None]


def padding_mask(key_segments: Int[Array, "B S"]) -> Bool[Array, "B 1 1 S"]:
    """True where the key is a real token (segment 0 is padding)."""
    return (key_segments > 0)[:, None, None, :]


def segment_mask(
    query_segments: Int[Array, "B T"], key_segments: Int[Array, "B S"]
) -> Bool[Array, "B 1 T S"]:
    """True where query and key belong to the same packed document."""
    return (query_segments[:, :, None] == key_segments[:, None, :])[:, None]


def random_bits(key: PRNGKeyArray, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """32 random bits an element: a hash of the element's index, seeded by `key`.

    The finalizer of MurmurHash3 with two words of the key mixed in. On a CPU threefry
    took an eighth of a training step; this fuses into its consumer, and depends on the
    index alone, so it is the same on any number of devices.
    """
    seed = jax.random.bits(key, (2,), jnp.uint32)
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        index += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride = stride * shape[axis] % 2**32
    bits = (index ^ seed[0]) * jnp.uint32(0x9E3779B1)
    bits = ((bits ^ (bits >> 15)) + seed[1]) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def dropout(
    values: Float[Array, "*shape"], rate: float, key: PRNGKeyArray | None
) -> Float[Array, "*shape"]:
    """Zero elements with probability `rate`, scale the others; `None` turns it off."""
    if key is None or rate == 0:
        return values
    keep = random_bits(key, values.shape) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, values / (1 - rate), 0)


def attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    mask: Bool[Array, "#B 1 #T S"],
    dropout_rate: float,
    dropout_key: PRNGKeyArray | None,
    fused: bool = False,
) -> Float[Array, "B T H K"]:
    """softmax(query . key / sqrt(K)) . value over the keys where `mask` is True.

    A query with no key to see gets zeros, and sends no gradient. With `fused` it is one
    kernel of cuDNN where that has one for the arguments; both give the same up to
    rounding.
    """
    drops = dropout_key is not None and dropout_rate > 0
    if fused and not drops and fits_cudnn(query, key):
        return fused_attention(query, key, value, mask, "cudnn")
    return plain_attention(query, key, value, mask, dropout_rate, dropout_key)


def fits_cudnn(query: Float[Array, "B T H K"], key: Float[Array, "B S H K"]) -> bool:
    """Whether cuDNN has a kernel for these shapes and types, on this device."""
    return (
        "cuda" in jax.devices()[0].client.platform_version
        and query.dtype == key.dtype == jnp.bfloat16
        and query.shape[1] % 2 == key.shape[1] % 2 == 0
        and query.shape[3] <= 128
        and query.shape[3] % 8 == 0
    )


def fused_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    mask: Bool[Array, "#B 1 #T S"],
    implementation: str,
) -> Float[Array, "B T H K"]:
    """Attention without dropout by jax.nn; "xla" for `implementation` runs anywhere."""
    shape = (query.shape[0], 1, query.shape[1], key.shape[1])
    mask = jnp.broadcast_to(mask, shape)
    output = jax.nn.dot_product_attention(
        query, key, value, mask=mask, implementation=implementation
    )
    sees_a_key = mask.any(-1)[:, 0, :, None, None]  # else it got the mean of all values
    return jnp.where(sees_a_key, output, 0)


def plain_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    mask: Bool[Array, "#B 1 #T S"],
    dropout_rate: float,
    dropout_key: PRNGKeyArray | None,
) -> Float[Array, "B T H K"]:
    """Attention written out: softmax in float32, dropout on its probabilities."""
    scores = jnp.einsum(
        "bthk,bshk->bhts", query, key, preferred_element_type=jnp.float32
    ) / math.sqrt(query.shape[-1])
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    largest = lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(scores - largest), 0)
    total = weights.sum(-1, keepdims=True)
    # Dividing the short output rows by `total` is cheaper than dividing the weights.
    output = jnp.einsum(
        "bhts,bshk->bthk",
        dropout(weights, dropout_rate, dropout_key).astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    total = jnp.where(total == 0, 1, total).swapaxes(1, 2)
    return (output / total).astype(value.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases; its width need not be H * K = D."""

    num_heads: int
    head_dim: int
    dropout_rate: float
    fused: bool
    kernel_init: Initializer
    output_kernel_init: Initializer
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        mask: Bool[Array, "#B 1 #T S"],
        cache: KeyValues | None,
        cache_index: Int[Array, ""] | None,
        *,
        deterministic: bool,
    ) -> tuple[Float[Array, "B T D"], KeyValues | None]:
        """With a cache, keys and values are written into it at `cache_index` on and
        attention runs over its whole length S; without, S = T. Returns the cache."""

        def project(name: str) -> Float[Array, "B T H K"]:
            dense = nn.Dense(
                self.num_heads * self.head_dim,
                kernel_init=self.kernel_init,
                dtype=self.dtype,
                name=name,
            )
            return dense(hidden).reshape(
                *hidden.shape[:2], self.num_heads, self.head_dim
            )

        query, key, value = project("query"), project("key"), project("value")
        if cache is not None:
            assert cache_index is not None
            key, value = (
                lax.dynamic_update_slice_in_dim(
                    cache[name], new.astype(cache[name].dtype), cache_index, axis=1
                )
                for name, new in (("key", key), ("value", value))
            )
            cache = {"key": key, "value": value}
        dropout_key = None if deterministic else self.make_rng("dropout")
        attended = attention(
            query, key, value, mask, self.dropout_rate, dropout_key, self.fused
        )
        output = nn.Dense(
            hidden.shape[-1],
            kernel_init=self.output_kernel_init,
            dtype=self.dtype,
            name="output",
        )(attended.reshape(*hidden.shape[:2], -1))
        return output, cache
