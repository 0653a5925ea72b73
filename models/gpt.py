"""GPT-1, GPT-2 and GPT-3 (dense): a causal transformer with tied input and output.

GPT-1 (Radford et al. 2018): pre_norm False, table_dropout True, no residual scaling.
GPT-2 (Radford et al. 2019, section 2.3): pre_norm True, residual_scaling True.
GPT-3 (Brown et al. 2020, section 2.1): as GPT-2; its locally banded sparse layers,
whose bandwidth was not published, are dense here. `head_dim` is free because two of
its printed sizes (XL, 13B) have num_heads * head_dim != hidden_size.
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import normal
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from models.attention import dropout, empty_cache
from models.family import Family, TextFrame
from models.transformer import (
    CUT_SIZES,
    DROPOUTS,
    PLACEMENT,
    SETTINGS,
    TINY,
    Prediction,
    block_with_remat,
    check_length,
    depth,
    forward_flops,
    layer_norm,
    placed,
    without_padding,
    word_table,
)
from settings import Setting


class GptEmbeddings(nn.Module):
    """Sum of the word and position vectors, with dropout."""

    vocab_size: int
    max_positions: int
    hidden_size: int
    dropout_rate: float
    table_dropout: bool
    init_std: float
    position_init_std: float

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        dropout_rows: Int[Array, " B"] | None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "V D"]]:
        """Returns the sum and the word table that is to make the logits."""
        table = word_table(self.vocab_size, self.hidden_size, normal(self.init_std))
        position_table = nn.Embed(
            self.max_positions,
            self.hidden_size,
            embedding_init=normal(self.position_init_std),
            name="position",
        ).embedding

        def drop(
            values: Float[Array, "*shape"], rows: Int[Array, " B"] | None = None
        ) -> Float[Array, "*shape"]:
            key = None if dropout_rows is None else self.make_rng("dropout")
            return dropout(values, self.dropout_rate, key, rows)

        if self.table_dropout:
            # GPT-1's release drops elements of the tables themselves: the same ones for
            # every occurrence of a word in the batch, and in the softmax as well.
            table, position_table = drop(table), drop(position_table)
            return table[tokens] + position_table[positions], table
        return drop(table[tokens] + position_table[positions], dropout_rows), table


class Gpt(nn.Module):
    """Causal language model.

    The softmax of GPT-1's release also ran over its position rows; here it runs over
    the words alone, in all models.
    """

    vocab_size: int
    max_positions: int
    num_layers: int
    num_heads: int
    head_dim: int
    hidden_size: int
    ffn_size: int
    activation: str  # "gelu_tanh" in all papers
    pre_norm: bool  # with a final norm; False: GPT-1's post-LN, without one
    norm_epsilon: float
    embedding_dropout: float
    attention_dropout: float
    residual_dropout: float
    table_dropout: bool  # embedding dropout acts on the tables (GPT-1), not on the sum
    init_std: float
    position_init_std: float
    residual_scaling: bool  # branch outputs start at init_std / sqrt(2 * num_layers)
    dtype: DTypeLike = jnp.float32  # of the matrix products; parameters are float32
    remat: str = "none"  # see `block_with_remat`
    fused_attention: bool = False  # see `attention`

    def empty_cache(self, batch_size: int, length: int) -> dict:
        """As `attention.empty_cache`: pass it as `cache`."""
        check_length(length, self.max_positions)
        shape = (batch_size, length, self.num_heads, self.head_dim)
        return empty_cache(self.num_layers, *shape, self.dtype)

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        dropout_rows: Int[Array, " B"] | None = None,
        cache: dict | None = None,
    ) -> dict:
        """Returns "hidden" [B, T, D], "hidden_layers" (the embedded tokens, then every
        layer's output, the last one's normed) and the prediction "causal_lm" [B, T, V].

        Missing `segment_ids` mean one document a row, missing `positions` count from 0.
        `dropout_rows` numbers the rows that dropout draws for; without it dropout is
        off. With `cache` (of `empty_cache`) the tokens continue what it holds, missing
        positions count from its index, and "cache" is returned too; the caller sees to
        it that it does not overflow. Prompts of unequal length are padded on the left
        with segment 0, and come with their positions.
        """
        positions, mask = placed(
            tokens,
            segment_ids,
            positions,
            cache,
            causal=True,
            max_positions=self.max_positions,
        )

        hidden, table = GptEmbeddings(
            self.vocab_size,
            self.max_positions,
            self.hidden_size,
            self.embedding_dropout,
            self.table_dropout,
            self.init_std,
            self.position_init_std,
            name="embeddings",
        )(tokens, positions, dropout_rows)
        output_std = self.init_std
        if self.residual_scaling:
            output_std /= math.sqrt(2 * self.num_layers)
        new_cache = {
            "index": mask.start + tokens.shape[1],
            "segment_ids": mask.key_segments,
        }
        hidden_layers = [hidden]
        block = block_with_remat(self.remat)
        for i in range(self.num_layers):
            name = f"layer_{i}"
            hidden, new_cache[name] = block(
                self.num_heads,
                self.head_dim,
                self.ffn_size,
                self.activation,
                self.pre_norm,
                self.norm_epsilon,
                self.attention_dropout,
                self.residual_dropout,
                self.fused_attention,
                normal(self.init_std),
                normal(output_std),
                self.dtype,
                name=name,
            )(hidden, mask, None if cache is None else cache[name], dropout_rows)
            hidden_layers.append(hidden)
        if self.pre_norm:
            hidden = layer_norm(self.norm_epsilon, "final_norm")(hidden)
            hidden_layers[-1] = hidden
        bias = without_padding(None, self.vocab_size)
        output = {
            "hidden": hidden,
            "hidden_layers": tuple(hidden_layers),
            "causal_lm": Prediction(hidden, table.astype(self.dtype), bias),
        }
        return output if cache is None else {**output, "cache": new_cache}


FAMILY = Family(
    module=Gpt,
    inputs=("tokens", "segment_ids", "positions"),
    # GPT-1, section 3.3
    frames={"left": TextFrame("start", "delimiter", "extract", readout="last")},
    outputs={"causal_lm": {}},
    pooler=lambda _: "none",
    initializer=lambda model: normal(model.init_std),
    vocabulary=(r"embeddings/token/embedding",),
    placement=PLACEMENT,
    cut_sizes=CUT_SIZES,
    pretraining_only=r"(?!)",  # its table is its head
    depth=depth,
    forward_flops=forward_flops,
    dropouts=DROPOUTS,
    settings=(
        *SETTINGS,
        Setting("model.pre_norm", bool, "Norm before each branch; False: GPT-1's."),
        Setting("model.table_dropout", bool, "Embedding dropout on the tables."),
        Setting(
            "model.position_init_std",
            float,
            "Standard deviation of the fresh table of positions.",
            ">0",
        ),
        Setting("model.residual_scaling", bool, "Branches start smaller with depth."),
    ),
    rules=(),
    tiny=TINY,
)
