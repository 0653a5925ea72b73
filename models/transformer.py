"""What the Transformers share: block, feed-forward layer, word table, what logits are
made of, and where their parameters lie.

Post-LN (Transformer, GPT-1, BERT):  x = norm(x + dropout(sublayer(x)))
Pre-LN (GPT-2, GPT-3):               x = x + dropout(sublayer(norm(x)))
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import Initializer
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from errors import UserError
from models.attention import KeyValues, Mask, SelfAttention, dropout
from models.family import Fields
from settings import Setting

VOCABULARY_MULTIPLE = 128


def gelu_erf(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x * Phi(x), Hendrycks and Gimpel 2016; jax.nn.gelu's form by erfc keeps one more
    array of this size for the backward pass."""
    return 0.5 * values * (1 + lax.erf(values * math.sqrt(0.5)))


ACTIVATIONS = {
    "gelu_erf": gelu_erf,  # BERT of 2018
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),  # GPT, later BERT
    "relu": jax.nn.relu,
    "relu_squared": lambda values: jnp.square(jax.nn.relu(values)),  # Primer
}


# What is kept of a block for the backward pass.
REMAT = {
    "none": None,  # all that it needs
    "matmuls": jax.checkpoint_policies.dots_saveable,
    "block": jax.checkpoint_policies.nothing_saveable,  # its input alone
}


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


def placed(
    tokens: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"] | None,
    positions: Int[Array, "B T"] | None,
    cache: dict | None,
    *,
    causal: bool,
    max_positions: int,
) -> tuple[Int[Array, "B T"], Mask]:
    """The positions of tokens, and what each of them sees.

    Missing `segment_ids` mean one document a row; missing `positions` count from 0, or
    from the index of the cache that the tokens continue.
    """
    length = tokens.shape[1]
    start = jnp.int32(0) if cache is None else cache["index"]
    if positions is None:  # rows of several short examples may be longer
        check_length(length, max_positions)
        index = start + jnp.arange(length, dtype=jnp.int32)
        positions = jnp.broadcast_to(index[None], tokens.shape)
    key_segments = segment_ids
    if cache is not None:
        if segment_ids is None:
            segment_ids = jnp.ones(tokens.shape, jnp.int32)
        key_segments = lax.dynamic_update_slice_in_dim(
            cache["segment_ids"], segment_ids, start, axis=1
        )
    return positions, Mask(segment_ids, key_segments, start, causal)


class Prediction(NamedTuple):
    """What the logits of a prediction are made of: `states . table^T + bias`.

    With the table of a padded vocabulary the bias of its empty rows is -inf, so that
    they never win and never count.
    """

    states: Float[Array, "*slots D"]
    table: Float[Array, "V D"]
    bias: Float[Array, " V"] | None


def logits(prediction: Prediction) -> Float[Array, "*slots V"]:
    """Scores of all words, float32: product with the table in the table's type."""
    states, table, bias = prediction
    scores = jnp.einsum(
        "...d,vd->...v",
        states.astype(table.dtype),
        table,
        preferred_element_type=jnp.float32,
    )
    if bias is None:
        return scores
    return scores + bias.reshape((1,) * (states.ndim - 1) + bias.shape)


def padded_size(vocab_size: int) -> int:
    """Rows of the word table: a multiple that mesh axes and matrix units like."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def padded_init(init: Initializer, vocab_size: int) -> Initializer:
    """`init` for the first `vocab_size` rows; the others are 0, and stay so."""

    def padded(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        rows = init(key, (vocab_size, *shape[1:]), dtype)
        return jnp.pad(rows, [(0, shape[0] - vocab_size)] + [(0, 0)] * (len(shape) - 1))

    return padded


def without_padding(
    bias: Float[Array, " V"] | None, vocab_size: int
) -> Float[Array, " V"] | None:
    """The bias with -inf for the rows from `vocab_size` on, if there are any."""
    size = padded_size(vocab_size)
    if size == vocab_size:
        return bias
    given = jnp.zeros(size) if bias is None else bias
    return jnp.where(jnp.arange(size) < vocab_size, given, -jnp.inf)


def word_table(
    vocab_size: int, hidden_size: int, init: Initializer
) -> Float[Array, "V D"]:
    """The table `token`, padded; called within a module."""
    return nn.Embed(
        padded_size(vocab_size),
        hidden_size,
        embedding_init=padded_init(init, vocab_size),
        name="token",
    ).embedding


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
        )(ACTIVATIONS[self.activation](inner))


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
        mask: Mask,
        cache: KeyValues | None = None,
        dropout_rows: Int[Array, " B"] | None = None,
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
            key = None if dropout_rows is None else self.make_rng("dropout")
            return hidden + dropout(branch, self.residual_dropout, key, dropout_rows)

        seen = attention_norm(hidden) if self.pre_norm else hidden
        attended, cache = attention(seen, mask, cache, dropout_rows)
        hidden = add(attended)
        hidden = hidden if self.pre_norm else attention_norm(hidden)
        seen = feed_forward_norm(hidden) if self.pre_norm else hidden
        hidden = add(feed_forward(seen))
        hidden = hidden if self.pre_norm else feed_forward_norm(hidden)
        return hidden, cache


def block_with_remat(remat: str) -> type[Block]:
    """`Block`, whose backward pass computes again what `remat` does not keep."""
    return Block if remat == "none" else nn.remat(Block, policy=REMAT[remat])


# What the records of the families share.

# Which mesh axes cut the axes of a parameter, by its path; the first match wins, and
# what is not here is small and stays whole. `tensor` cuts between the two products of a
# branch, by heads or by inner units (Shoeybi et al. 2019, section 3), and the
# vocabulary; `fsdp` cuts the width of the residual stream.
PLACEMENT = (
    (r"embeddings/token/embedding", PartitionSpec("tensor", "fsdp")),
    (r"embeddings/.*/embedding", PartitionSpec(None, "fsdp")),
    (r"layer_\d+/.*/(query|key|value|up)/kernel", PartitionSpec("fsdp", "tensor")),
    (r"layer_\d+/.*/(query|key|value|up)/bias", PartitionSpec("tensor")),
    (r"layer_\d+/.*/(output|down)/kernel", PartitionSpec("tensor", "fsdp")),
    (r"masked_lm/bias", PartitionSpec("tensor")),
    (r".*/kernel", PartitionSpec("fsdp")),
)
CUT_SIZES = {
    "fsdp": ("hidden_size",),
    "tensor": ("vocab_size", "num_heads", "ffn_size"),
}


def depth(fields: Fields, path: str) -> int:
    """0 for the embeddings, i + 1 for layer i, one more for what stands above."""
    if path.startswith("embeddings/"):
        return 0
    layer = re.match(r"layer_(\d+)/", path)
    return int(layer[1]) + 1 if layer else fields["num_layers"] + 1


def forward_flops(
    fields: Fields, sizes: Mapping[str, int], length: int, predicted: int
) -> float:
    """FLOPs of a forward pass, of a token: 2 for each multiply-add.

    Args:
        fields: `model` of a config.
        sizes: path -> number of parameters.
        length: tokens of a row.
        predicted: positions of a row whose words are predicted.
    """
    share = {
        "masked_lm": predicted / length,
        "pooler": 1 / length,
        "next_sentence": 1 / length,
    }
    vocabulary = padded_size(fields["vocab_size"])
    products = vocabulary * fields["hidden_size"] * predicted / length
    for path, size in sizes.items():
        if path.endswith("kernel"):
            products += size * share.get(path.split("/")[0], 1)
    attention_width = fields["num_heads"] * fields["head_dim"]
    return 2 * (products + 2 * fields["num_layers"] * attention_width * length)


SETTINGS = (
    Setting(
        "model.vocab_size", int, "Words of the table, at least the tokenizer's.", ">=1"
    ),
    Setting(
        "model.max_positions",
        int,
        "Rows of the table of positions: the longest text.",
        ">=1",
    ),
    Setting("model.num_layers", int, "Blocks.", ">=1"),
    Setting("model.num_heads", int, "Attention heads of a block.", ">=1"),
    Setting("model.head_dim", int, "Width of a head.", ">=1"),
    Setting("model.hidden_size", int, "Width of the residual stream.", ">=1"),
    Setting("model.ffn_size", int, "Inner width of the feed-forward layer.", ">=1"),
    Setting(
        "model.activation", str, "Of the feed-forward layer.", choices=(*ACTIVATIONS,)
    ),
    Setting("model.norm_epsilon", float, "Added to the variance in layer norm.", ">0"),
    Setting("model.embedding_dropout", float, "Of the embedded tokens.", ">=0 <1"),
    Setting("model.attention_dropout", float, "Of the attention weights.", ">=0 <1"),
    Setting("model.residual_dropout", float, "Of the output of a branch.", ">=0 <1"),
    Setting(
        "model.init_std", float, "Standard deviation of fresh kernels and tables.", ">0"
    ),
)
DROPOUTS = ("embedding_dropout", "attention_dropout", "residual_dropout")
TINY = {"vocab_size": 512, "max_positions": 32, "num_layers": 2, "num_heads": 2}
TINY |= {"head_dim": 8, "hidden_size": 16, "ffn_size": 64}
