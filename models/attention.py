"""Attention: masks, dropout, the attention function and the multi-head module.

Axes: B batch, T queries, S keys, H heads, K width of a head, D width of the model.
Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from flax.linen.initializers import Initializer
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

INSPECTED = "inspected"  # collection of attention weights, for who wants to see them
KeyValues = dict[str, Array]  # "key", "value" [B, S, H, K], and what a family adds


@struct.dataclass
class Mask:
    """Which keys a query sees, said so that a fused kernel need not be given [B, T, S].

    A query sees the keys of its own segment that are no padding (segment 0); where
    `causal`, of those itself and what stands before it.

    Attributes:
        query_segments, key_segments: the documents that rows are packed with; None:
            a row is one document without padding.
        start: place of the first query among the keys.
    """

    query_segments: Int[Array, "B T"] | None
    key_segments: Int[Array, "B S"] | None
    start: Int[Array, ""] | int
    causal: bool = struct.field(pytree_node=False)

    def dense(self, queries: int, keys: int) -> Bool[Array, "#B 1 #T S"]:
        """True where query [T] sees key [S]."""
        mask = jnp.ones((1, 1, 1, keys), bool)
        if self.causal:
            place = self.start + jnp.arange(queries)
            mask = (jnp.arange(keys)[None, :] <= place[:, None])[None, None]
        if self.query_segments is None or self.key_segments is None:
            return mask
        is_own = self.query_segments[:, :, None] == self.key_segments[:, None, :]
        is_token = self.key_segments > 0
        return mask & (is_own & is_token[:, None, :])[:, None]


def empty_cache(
    num_layers: int,
    batch_size: int,
    length: int,
    num_heads: int,
    head_dim: int,
    dtype: DTypeLike,
) -> dict:
    """Keys and values for `length` tokens, none seen yet.

    "index" is the number of slots filled, "segment_ids" [B, S] tells real tokens from
    padding, "layer_i" holds {"key", "value"}, each [B, S, H, K].
    """
    shape = (batch_size, length, num_heads, head_dim)
    layers = {
        f"layer_{i}": {"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype)}
        for i in range(num_layers)
    }
    segment_ids = jnp.zeros((batch_size, length), jnp.int32)
    return {"index": jnp.int32(0), "segment_ids": segment_ids, **layers}


def extended(
    cache: KeyValues,
    start: Int[Array, ""] | int,
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T H K"],
) -> KeyValues:
    """A layer's cache with keys and values written at `start` and on."""
    new = {"key": key, "value": value}
    return cache | {
        name: lax.dynamic_update_slice_in_dim(
            cache[name], array.astype(cache[name].dtype), start, axis=1
        )
        for name, array in new.items()
    }


def random_bits(
    key: PRNGKeyArray, shape: tuple[int, ...], rows: Int[Array, " B"] | None = None
) -> UInt32[Array, "..."]:
    """32 random bits an element: a hash of the element's index, seeded by `key`.

    The finalizer of MurmurHash3 with two words of the key mixed in. On a CPU threefry
    took an eighth of a training step; this fuses into its consumer, and depends on the
    index alone: the number of the row, of `rows` or else counted from 0, and the place
    in it. So it is the same on any number of devices and in any micro-batches.
    """
    seed = jax.random.bits(key, (2,), jnp.uint32)
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        place = lax.broadcasted_iota(jnp.uint32, shape, axis)
        if axis == 0 and rows is not None:
            place = rows.astype(jnp.uint32).reshape(-1, *[1] * (len(shape) - 1))
        index += place * jnp.uint32(stride)
        stride = stride * shape[axis] % 2**32
    bits = (index ^ seed[0]) * jnp.uint32(0x9E3779B1)
    bits = ((bits ^ (bits >> 15)) + seed[1]) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def dropout(
    values: Float[Array, "*shape"],
    rate: float,
    key: PRNGKeyArray | None,
    rows: Int[Array, " B"] | None = None,
) -> Float[Array, "*shape"]:
    """Zero elements with probability `rate`, scale the others; no key turns it off.

    `rows` numbers what lies along the first axis, see `random_bits`.
    """
    if key is None or rate == 0:
        return values
    keep = random_bits(key, values.shape, rows) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, values / (1 - rate), 0)


def attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    mask: Mask,
    dropout_rate: float = 0.0,
    dropout_key: PRNGKeyArray | None = None,
    dropout_rows: Int[Array, " B"] | None = None,
    fused: bool = False,
) -> Float[Array, "B T H K"]:
    """softmax(query . key / sqrt(K)) . value over the keys that `mask` lets be seen.

    A query with no key to see gets zeros, and sends no gradient. With `fused` it is one
    kernel of cuDNN where that has one for the arguments; both give the same up to
    rounding.
    """
    drops = dropout_key is not None and dropout_rate > 0
    if fused and not drops and fits_cudnn(query, key):
        return fused_attention(query, key, value, mask, "cudnn")
    return plain_attention(
        query, key, value, mask, dropout_rate, dropout_key, dropout_rows
    )


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
    mask: Mask,
    implementation: str,
) -> Float[Array, "B T H K"]:
    """Attention without dropout by jax.nn; "xla" for `implementation` runs anywhere."""
    if mask.query_segments is None and query.shape[1] == key.shape[1]:
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=mask.causal, implementation=implementation
        )
    # jax.nn's call of cuDNN takes lengths of rows, but not the segments within them.
    dense = mask.dense(query.shape[1], key.shape[1])
    dense = jnp.broadcast_to(dense, (len(query), 1, query.shape[1], key.shape[1]))
    output = jax.nn.dot_product_attention(
        query, key, value, mask=dense, implementation=implementation
    )
    sees_a_key = dense.any(-1)[:, 0, :, None, None]  # else it got the mean of all
    return jnp.where(sees_a_key, output, 0)


def plain_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    mask: Mask,
    dropout_rate: float,
    dropout_key: PRNGKeyArray | None,
    dropout_rows: Int[Array, " B"] | None,
) -> Float[Array, "B T H K"]:
    """Attention written out: softmax in float32, dropout on its probabilities."""
    is_seen = mask.dense(query.shape[1], key.shape[1])
    scores = jnp.einsum(
        "bthk,bshk->bhts", query, key, preferred_element_type=jnp.float32
    ) / math.sqrt(query.shape[-1])
    scores = jnp.where(is_seen, scores, jnp.finfo(jnp.float32).min)
    largest = lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.where(is_seen, jnp.exp(scores - largest), 0)
    total = weights.sum(-1, keepdims=True)
    # Dividing the short output rows by `total` is cheaper than dividing the weights.
    output = jnp.einsum(
        "bhts,bshk->bthk",
        dropout(weights, dropout_rate, dropout_key, dropout_rows).astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    total = jnp.where(total == 0, 1, total).swapaxes(1, 2)
    return (output / total).astype(value.dtype)


def show_weights(
    module: nn.Module,
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    mask: Mask,
) -> None:
    """Leaves a module's attention weights [B, H, T, S] in `INSPECTED`, where that is
    asked for; else nothing is computed."""
    if module.is_initializing() or not module.is_mutable_collection(INSPECTED):
        return
    scores = jnp.einsum("bthk,bshk->bhts", query, key).astype(jnp.float32)
    is_seen = mask.dense(query.shape[1], key.shape[1])
    scores = scores / math.sqrt(query.shape[-1])
    weights = jax.nn.softmax(scores, axis=-1, where=is_seen)
    module.sow(INSPECTED, "weights", jnp.where(is_seen, weights, 0))


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
        mask: Mask,
        cache: KeyValues | None,
        dropout_rows: Int[Array, " B"] | None,
    ) -> tuple[Float[Array, "B T D"], KeyValues | None]:
        """With a cache, keys and values are written into it at `mask.start` on and
        attention runs over its whole length S; without, S = T. Returns the cache.
        Dropout is off without `dropout_rows`."""

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
            cache = extended(cache, mask.start, key, value)
            key, value = cache["key"], cache["value"]
        show_weights(self, query, key, mask)
        attended = attention(
            query,
            key,
            value,
            mask,
            self.dropout_rate,
            None if dropout_rows is None else self.make_rng("dropout"),
            dropout_rows,
            self.fused,
        )
        output = nn.Dense(
            hidden.shape[-1],
            kernel_init=self.output_kernel_init,
            dtype=self.dtype,
            name="output",
        )(attended.reshape(*hidden.shape[:2], -1))
        return output, cache
