"""What GPT and BERT share: feed-forward layer, block, embedding table, output logits.

Post-LN (Transformer, GPT-1, BERT):  x = norm(x + dropout(sublayer(x)))
Pre-LN (GPT-2, GPT-3):               x = x + dropout(sublayer(norm(x)))
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import Initializer
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from errors import UserError
from models.attention import KeyValues, SelfAttention, dropout


def gelu_erf(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x * Phi(x), Hendrycks and Gimpel 2016; jax.nn.gelu's form by erfc keeps one more
    array of this size for the backward pass."""
    return 0.5 * values * (1 + lax.erf(values * math.sqrt(0.5)))


ACTIVATIONS = {
    "gelu_erf": gelu_erf,  # BERT of 2018
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),  # GPT, later BERT
    "relu": jax.nn.relu,
}


# What is kept of a block for the backward pass.
REMAT = {
    "none": None,  # all that it needs
    "matmuls": jax.checkpoint_policies.dots_saveable,
    "block": jax.checkpoint_policies.nothing_saveable,  # its input alone
}


def activate(name: str, values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Apply the activation called `name`; UserError for a name that does not exist."""
    if name not in ACTIVATIONS:
        raise UserError(
            f"model.activation is {name!r}; choose one of {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name](values)


def layer_norm(epsilon: float, name: str) -> nn.LayerNorm:
    """Layer norm in float32; the two-pass variance, as an epsilon of 1e-12 needs."""
    return nn.LayerNorm(epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


def check_length(length: int, max_positions: int) -> None:
    """UserError if a sequence (or a cache) is longer than the table of positions."""
    if length > max_positions:
        raise UserError(
            f"a sequence of {length} tokens does not fit model.max_positions = "
            f"{max_positions}; shorten the sequences or raise model.max_positions"
        )


def tied_logits(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    bias: Float[Array, " V"] | None,
) -> Float[Array, "B T V"]:
    """Scores of all words, float32: product with the word table in the table's type."""
    logits = jnp.einsum(
        "btd,vd->btv",
        hidden.astype(table.dtype),
        table,
        preferred_element_type=jnp.float32,
    )
    return logits if bias is None else logits + bias[None, None]


class FeedForward(nn.Module):
    """dense, activation, dense; position by position."""

    ffn_size: int
    activation: str
    kernel_init: Initializer
    output_kernel_init: Initializer
    dtype: DTypeLike

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        inner = nn.Dense(
            self.ffn_size, kernel_init=self.kernel_init, dtype=self.dtype, name="up"
        )(hidden)
        return nn.Dense(
            hidden.shape[-1],
            kernel_init=self.output_kernel_init,
            dtype=self.dtype,
            name="down",
        )(activate(self.activation, inner))


class Block(nn.Module):
    """Self-attention and feed-forward layer, each with dropout, residual and norm."""

    num_heads: int
    head_dim: int
    ffn_size: int
    activation: str
    pre_norm: bool
    norm_epsilon: float
    attention_dropout: float
    residual_dropout: float
    fused_attention: bool
    kernel_init: Initializer
    output_kernel_init: Initializer  # of the two projections that end a branch
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        mask: Bool[Array, "#B 1 #T S"],
        cache: KeyValues | None = None,
        cache_index: Int[Array, ""] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T D"], KeyValues | None]:
        """The residual stream is float32 in and out; returns the layer's new cache."""
        attention = SelfAttention(
            self.num_heads,
            self.head_dim,
            self.attention_dropout,
            self.fused_attention,
            self.kernel_init,
            self.output_kernel_init,
            self.dtype,
            name="attention",
        )
        feed_forward = FeedForward(
            self.ffn_size,
            self.activation,
            self.kernel_init,
            self.output_kernel_init,
            self.dtype,
            name="feed_forward",
        )
        attention_norm = layer_norm(self.norm_epsilon, "attention_norm")
        feed_forward_norm = layer_norm(self.norm_epsilon, "feed_forward_norm")

        def add(branch: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
            key = None if deterministic else self.make_rng("dropout")
            return hidden + dropout(branch, self.residual_dropout, key)

        seen = attention_norm(hidden) if self.pre_norm else hidden
        attended, cache = attention(
            seen, mask, cache, cache_index, deterministic=deterministic
        )
        hidden = add(attended)
        hidden = hidden if self.pre_norm else attention_norm(hidden)
        seen = feed_forward_norm(hidden) if self.pre_norm else hidden
        hidden = add(feed_forward(seen))
        hidden = hidden if self.pre_norm else feed_forward_norm(hidden)
        return hidden, cache


def block_with_remat(remat: str) -> type[Block]:
    """`Block`, whose backward pass computes again what `remat` does not keep.

    Raises:
      UserError: a name that does not exist.
    """
    if remat not in REMAT:
        raise UserError(f"run.remat is {remat!r}; choose one of {', '.join(REMAT)}")
    if remat == "none":
        return Block
    deterministic = 5  # the place of the argument; it decides what is traced
    return nn.remat(Block, policy=REMAT[remat], static_argnums=(deterministic,))
