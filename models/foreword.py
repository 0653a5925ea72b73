"""The project's own family: one Transformer that reads to the left or both ways.

The same weights serve both: `sees` says which. What it has that GPT and BERT lack, each
for a masked position, which carries nothing of its own, to find its neighbours soon:
rotary positions in attention (Su et al. 2021, RoFormer, section 3.2), the norm before
each branch, root mean square without biases (Zhang and Sennrich 2019), a norm of query
and key (Henry et al. 2020), squared ReLU (So et al. 2021, Primer, section 4), a short
depthwise convolution before attention (there, too; Allen-Zhu 2025, Canon layers), and
the first layer's values mixed into those of all others (Zhou et al. 2024, value
residual): deep layers still collect the words that stand around.
"""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import normal
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from models.attention import (
    KeyValues,
    Mask,
    attention,
    dropout,
    empty_cache,
    extended,
    show_weights,
)
from models.family import Family, TextFrame
from models.transformer import (
    ACTIVATIONS,
    CUT_SIZES,
    DROPOUTS,
    REMAT,
    SETTINGS,
    TINY,
    Prediction,
    check_length,
    depth,
    forward_flops,
    padded_size,
    placed,
    without_padding,
    word_table,
)
from settings import Setting


def rms_norm(epsilon: float, name: str) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon, dtype=jnp.float32, name=name)


def rotated(
    vectors: Float[Array, "B T H K"], angles: Float[Array, "B T 1 K_half"]
) -> Float[Array, "B T H K"]:
    """Element i and element K/2 + i turned by the angle i of their position, so that
    products of two depend on how far apart they stand."""
    a, b = jnp.split(vectors, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def angles(
    positions: Int[Array, "B T"], head_dim: int, base: float
) -> Float[Array, "B T 1 K_half"]:
    rates = base ** (-jnp.arange(0, head_dim, 2) / head_dim)
    return positions[:, :, None, None] * rates[None, None, None]


class ForewordEmbeddings(nn.Module):
    """The word vectors, normed, with dropout; positions act in attention."""

    vocab_size: int
    hidden_size: int
    norm_epsilon: float
    dropout_rate: float
    init_std: float

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B T"], dropout_rows: Int[Array, " B"] | None
    ) -> tuple[Float[Array, "B T D"], Float[Array, "V D"]]:
        """Returns the embedded tokens and the word table that is to make the logits."""
        table = word_table(self.vocab_size, self.hidden_size, normal(self.init_std))
        hidden = rms_norm(self.norm_epsilon, "norm")(table[tokens])
        key = None if dropout_rows is None else self.make_rng("dropout")
        return dropout(hidden, self.dropout_rate, key, dropout_rows), table


class WordHead(nn.Module):
    """The word table, and a bias of its own."""

    vocab_size: int

    @nn.compact
    def __call__(
        self, states: Float[Array, "B P D"], table: Float[Array, "V D"]
    ) -> Prediction:
        size = padded_size(self.vocab_size)
        bias = self.param("bias", nn.initializers.zeros, (size,))
        return Prediction(states, table, without_padding(bias, self.vocab_size))


class Near(nn.Module):
    """A word and what its neighbours add, each channel by itself; over no border of a
    document.

    Which neighbours: `radius` on the left and, where both sides are seen, on the right.
    """

    radius: int
    init_std: float

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        before: Float[Array, "B R D"],
        is_own: Float[Array, "B T W"],
    ) -> Float[Array, "B T D"]:
        """`before` stands to the left of `hidden`; `is_own` is 1 where a neighbour is
        of the same document, W = R + 1 of them or, on both sides, 2 R + 1."""
        radius, length = self.radius, hidden.shape[1]
        taps = self.param(
            "kernel", normal(self.init_std), (2 * radius + 1, hidden.shape[-1])
        )
        row = jnp.concatenate([before, hidden, jnp.zeros_like(before)], axis=1)
        for place in range(is_own.shape[-1]):
            seen = row[:, place : place + length] * is_own[:, :, place, None]
            hidden += seen * taps[None, place, None]
        return hidden


class Attention(nn.Module):
    """Multi-head self-attention on rotated, normed queries and keys, without biases.

    Given the values of the first layer, its own are mixed with them as it learns, half
    and half at the start.
    """

    num_heads: int
    head_dim: int
    norm_epsilon: float
    dropout_rate: float
    fused: bool
    init_std: float
    output_init_std: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        mask: Mask,
        turns: Float[Array, "B T 1 K_half"],
        first_values: Float[Array, "B T H K"] | None,
        cache: KeyValues | None,
        dropout_rows: Int[Array, " B"] | None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T H K"], KeyValues | None]:
        """As `models.attention.SelfAttention`; returns its values, too."""
        rows, length, width = hidden.shape
        # Heads lie outermost, so that devices can share them.
        every = nn.Dense(
            self.num_heads * 3 * self.head_dim,
            use_bias=False,
            kernel_init=normal(self.init_std),
            dtype=self.dtype,
            name="query_key_value",
        )(hidden).reshape(rows, length, self.num_heads, 3, self.head_dim)
        query = rms_norm(self.norm_epsilon, "query_norm")(every[:, :, :, 0])
        key = rms_norm(self.norm_epsilon, "key_norm")(every[:, :, :, 1])
        query, key = (rotated(x, turns).astype(self.dtype) for x in (query, key))
        values = every[:, :, :, 2]
        if first_values is not None:
            mix = self.param("value_mix", nn.initializers.constant(0.5), (2,))
            values = (mix[0] * values + mix[1] * first_values).astype(self.dtype)
        value = values  # of all that the cache knows, where there is one
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
            width,
            use_bias=False,
            kernel_init=normal(self.output_init_std),
            dtype=self.dtype,
            name="output",
        )(attended.reshape(rows, length, -1))
        return output, values, cache


class Layer(nn.Module):
    """Neighbours and attention, then the feed-forward layer; each with norm, dropout
    and residual."""

    num_heads: int
    head_dim: int
    ffn_size: int
    near_radius: int
    activation: str
    norm_epsilon: float
    attention_dropout: float
    residual_dropout: float
    fused_attention: bool
    init_std: float
    output_init_std: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        mask: Mask,
        turns: Float[Array, "B T 1 K_half"],
        is_own: Float[Array, "B T W"],
        first_values: Float[Array, "B T H K"] | None,
        cache: KeyValues | None,
        dropout_rows: Int[Array, " B"] | None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T H K"], KeyValues | None]:
        """The residual stream is float32 in and out; returns the layer's values and new
        cache, too."""
        width = hidden.shape[-1]

        def add(branch: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
            key = None if dropout_rows is None else self.make_rng("dropout")
            return hidden + dropout(branch, self.residual_dropout, key, dropout_rows)

        def dense(size: int, std: float, name: str) -> nn.Dense:
            init = normal(std)
            return nn.Dense(
                size, use_bias=False, kernel_init=init, dtype=self.dtype, name=name
            )

        seen = rms_norm(self.norm_epsilon, "attention_norm")(hidden)
        if self.near_radius:
            before = jnp.zeros((len(seen), self.near_radius, width))
            if cache is not None:
                before = cache["near"]
                last = jnp.concatenate([before, seen], axis=1)[:, -self.near_radius :]
                cache = cache | {"near": last}
            near = Near(self.near_radius, self.init_std, name="near")
            seen = near(seen, before, is_own)
        attended, values, cache = Attention(
            self.num_heads,
            self.head_dim,
            self.norm_epsilon,
            self.attention_dropout,
            self.fused_attention,
            self.init_std,
            self.output_init_std,
            self.dtype,
            name="attention",
        )(seen, mask, turns, first_values, cache, dropout_rows)
        hidden = add(attended)
        seen = rms_norm(self.norm_epsilon, "feed_forward_norm")(hidden)
        inner = dense(self.ffn_size, self.init_std, "up")(seen)
        inner = ACTIVATIONS[self.activation](inner)
        return add(dense(width, self.output_init_std, "down")(inner)), values, cache


class Foreword(nn.Module):
    """Language model to the left, or of masked words between both sides."""

    sees: str  # "left" or "both"
    vocab_size: int
    max_positions: int
    num_layers: int
    num_heads: int
    head_dim: int
    hidden_size: int
    ffn_size: int
    near_radius: int
    value_residual: bool
    rotary_base: float
    activation: str
    norm_epsilon: float
    embedding_dropout: float
    attention_dropout: float
    residual_dropout: float
    init_std: float
    dtype: DTypeLike = jnp.float32  # of the matrix products; parameters are float32
    remat: str = "none"  # see `transformer.REMAT`
    fused_attention: bool = False  # see `attention`

    def empty_cache(self, batch_size: int, length: int) -> dict:
        """As `attention.empty_cache`; a layer also keeps its last words, "near"."""
        check_length(length, self.max_positions)
        shape = (batch_size, length, self.num_heads, self.head_dim)
        cache = empty_cache(self.num_layers, *shape, self.dtype)
        near = jnp.zeros((batch_size, self.near_radius, self.hidden_size))
        return cache | {
            f"layer_{i}": cache[f"layer_{i}"] | {"near": near}
            for i in range(self.num_layers)
        }

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        predict_positions: Int[Array, "B P"] | None = None,
        dropout_rows: Int[Array, " B"] | None = None,
        cache: dict | None = None,
    ) -> dict:
        """Returns "hidden" [B, T, D], "hidden_layers" (the embedded tokens, then every
        layer's output, the last one's normed) and the prediction "causal_lm" [B, T, V]
        where it sees the left side, else "masked_lm" [B, P, V], at all positions
        without `predict_positions`.

        The arrays, and `cache`, are as for `models.gpt.Gpt`.
        """
        is_causal = self.sees == "left"
        positions, mask = placed(
            tokens,
            segment_ids,
            positions,
            cache,
            causal=is_causal,
            max_positions=self.max_positions,
        )
        turns = angles(positions, self.head_dim, self.rotary_base)
        is_own = self._neighbours(tokens, mask.query_segments, cache)

        hidden, table = ForewordEmbeddings(
            self.vocab_size,
            self.hidden_size,
            self.norm_epsilon,
            self.embedding_dropout,
            self.init_std,
            name="embeddings",
        )(tokens, dropout_rows)
        hidden_layers = [hidden]
        new_cache = {
            "index": mask.start + tokens.shape[1],
            "segment_ids": mask.key_segments,
        }
        first_values = None
        layer = Layer
        if self.remat != "none":
            layer = nn.remat(Layer, policy=REMAT[self.remat])
        for i in range(self.num_layers):
            name = f"layer_{i}"
            hidden, values, new_cache[name] = layer(
                self.num_heads,
                self.head_dim,
                self.ffn_size,
                self.near_radius,
                self.activation,
                self.norm_epsilon,
                self.attention_dropout,
                self.residual_dropout,
                self.fused_attention,
                self.init_std,
                self.init_std / math.sqrt(2 * self.num_layers),
                self.dtype,
                name=name,
            )(
                hidden,
                mask,
                turns,
                is_own,
                first_values,
                None if cache is None else cache[name],
                dropout_rows,
            )
            if self.value_residual and i == 0:
                first_values = values
            hidden_layers.append(hidden)
        hidden = rms_norm(self.norm_epsilon, "final_norm")(hidden)
        hidden_layers[-1] = hidden
        output = {"hidden": hidden, "hidden_layers": tuple(hidden_layers)}

        if not is_causal and predict_positions is not None:
            hidden = jnp.take_along_axis(hidden, predict_positions[:, :, None], axis=1)
        head = WordHead(self.vocab_size, name="word_head")
        name = "causal_lm" if is_causal else "masked_lm"
        output[name] = head(hidden, table.astype(self.dtype))
        return output if cache is None else {**output, "cache": new_cache}

    def _neighbours(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None,
        cache: dict | None,
    ) -> Float[Array, "B T W"]:
        """1 where a neighbour, from the left on, is a token of the same document."""
        radius, length = self.near_radius, tokens.shape[1]
        if segment_ids is None:
            segment_ids = jnp.ones(tokens.shape, jnp.int32)
        before = jnp.zeros((len(tokens), radius), jnp.int32)
        if cache is not None:
            seen = jnp.concatenate([before, cache["segment_ids"]], axis=1)
            before = lax.dynamic_slice_in_dim(seen, cache["index"], radius, axis=1)
        row = jnp.pad(
            jnp.concatenate([before, segment_ids], axis=1), [(0, 0), (0, radius)]
        )
        width = radius + 1 if self.sees == "left" else 2 * radius + 1
        near = jnp.stack([row[:, i : i + length] for i in range(width)], axis=-1)
        own = segment_ids[:, :, None]
        return ((near == own) & (own > 0)).astype(jnp.float32)


def turns_pairs(config: Any) -> str | None:
    if config.model.head_dim % 2:
        return (
            f"model.head_dim={config.model.head_dim} is odd: positions turn pairs of "
            "its elements, so choose an even one"
        )
    return None


PLACEMENT = (
    (r"embeddings/token/embedding", PartitionSpec("tensor", "fsdp")),
    (r"layer_\d+/.*(query_key_value|up)/kernel", PartitionSpec("fsdp", "tensor")),
    (r"layer_\d+/.*(output|down)/kernel", PartitionSpec("tensor", "fsdp")),
    (r"word_head/bias", PartitionSpec("tensor")),
)

FAMILY = Family(
    module=Foreword,
    inputs=("tokens", "segment_ids", "positions", "predict_positions"),
    frames={
        "both": TextFrame("cls", "sep", "sep", readout="first"),
        "left": TextFrame("start", "delimiter", "extract", readout="last"),
    },
    outputs={"causal_lm": {"sees": "left"}, "masked_lm": {"sees": "both"}},
    pooler=lambda _: "none",
    initializer=lambda model: normal(model.init_std),
    vocabulary=(r"embeddings/token/embedding", r"word_head/bias"),
    placement=PLACEMENT,
    cut_sizes=CUT_SIZES,
    pretraining_only=r"(?!)",  # its table is its head
    depth=depth,
    forward_flops=forward_flops,
    dropouts=DROPOUTS,
    settings=(
        *SETTINGS,
        Setting(
            "model.sees", str, "Sides that a position sees.", choices=("left", "both")
        ),
        Setting(
            "model.near_radius",
            int,
            "Neighbours on a side that a convolution adds before attention; 0: none.",
            ">=0",
        ),
        Setting(
            "model.value_residual",
            bool,
            "Layers' values are mixed with those of the first.",
            older=False,
        ),
        Setting("model.rotary_base", float, "Of the slowest turn of a position.", ">1"),
    ),
    tiny=TINY,
    rules=(turns_pairs,),
)
