"""BERT: a bidirectional transformer with its two pre-training heads.

Source: Devlin et al. 2019, section 3 and appendix A; the release's modeling.py and
run_pretraining.py. Post-LN. The [PAD] row of the word table is learned, as in the
release. Its activation was "gelu_erf" at first and "gelu_tanh" from February 2019.
"""

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import Initializer, normal, truncated_normal
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from errors import UserError
from models.attention import dropout, padding_mask, segment_mask
from models.transformer import (
    activate,
    block_with_remat,
    check_length,
    layer_norm,
    tied_logits,
)


class BertEmbeddings(nn.Module):
    """Sum of the word, position and token-type vectors; layer norm; dropout."""

    vocab_size: int
    max_positions: int
    num_token_types: int
    hidden_size: int
    norm_epsilon: float
    dropout_rate: float
    embedding_init: Initializer

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        token_types: Int[Array, "B T"],
        *,
        deterministic: bool,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "V D"]]:
        """Returns the embedded tokens and the word table, which the MLM head shares."""

        def table(rows: int, name: str) -> Float[Array, "rows D"]:
            return nn.Embed(
                rows, self.hidden_size, embedding_init=self.embedding_init, name=name
            ).embedding

        words = table(self.vocab_size, "token")
        hidden = words[tokens]
        hidden += table(self.max_positions, "position")[positions]
        hidden += table(self.num_token_types, "token_type")[token_types]
        hidden = layer_norm(self.norm_epsilon, "norm")(hidden)
        key = None if deterministic else self.make_rng("dropout")
        return dropout(hidden, self.dropout_rate, key), words


class MaskedLmHead(nn.Module):
    """dense, activation, layer norm; next the word table and the bias returned."""

    activation: str
    norm_epsilon: float
    kernel_init: Initializer
    dtype: DTypeLike

    vocab_size: int

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B P D"]
    ) -> tuple[Float[Array, "B P D"], Float[Array, " V"]]:
        hidden = nn.Dense(
            hidden.shape[-1],
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="transform",
        )(hidden)
        hidden = activate(self.activation, hidden)
        hidden = layer_norm(self.norm_epsilon, "norm")(hidden)
        return hidden, self.param("bias", nn.initializers.zeros, (self.vocab_size,))


class Bert(nn.Module):
    """Bidirectional encoder; each head exists only if its field says so."""

    vocab_size: int
    max_positions: int
    num_token_types: int
    num_layers: int
    num_heads: int
    head_dim: int
    hidden_size: int
    ffn_size: int
    activation: str  # "gelu_erf", "gelu_tanh" or "relu"
    norm_epsilon: float
    embedding_dropout: float
    attention_dropout: float
    residual_dropout: float
    init_std: float
    truncated_init: bool  # cut at two init_std, as published; False: plain normal
    pooler: bool
    masked_lm_head: bool
    next_sentence_head: bool  # reads the pooled vector, so it needs `pooler`
    dtype: DTypeLike = jnp.float32  # of the matrix products; parameters are float32
    remat: str = "none"  # see `block_with_remat`
    fused_attention: bool = False  # see `attention`

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        token_types: Int[Array, "B T"] | None = None,
        predict_positions: Int[Array, "B P"] | None = None,
        *,
        deterministic: bool,
    ) -> dict:
        """Returns "hidden" [B, T, D] and "hidden_layers" (the embedded tokens, then
        every layer's output), and as the heads are there "pooled" [B, D], "logits"
        [B, P, V] float32 and "next_sentence_logits" [B, 2] float32. What the logits are
        made of is there, too: "logits_hidden" [B, P, D], "logits_table" [V, D] and
        "logits_bias" [V].

        Missing `segment_ids` are all 1, `positions` count from 0, `token_types` are 0;
        without `predict_positions` every position is predicted (P = T).
        """
        length = tokens.shape[1]
        if positions is None:  # rows of several short examples may be longer
            check_length(length, self.max_positions)
        if segment_ids is None:
            segment_ids = jnp.ones(tokens.shape, jnp.int32)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(length)[None], tokens.shape)
        if token_types is None:
            token_types = jnp.zeros(tokens.shape, jnp.int32)
        mask = padding_mask(segment_ids) & segment_mask(segment_ids, segment_ids)
        init = truncated_normal if self.truncated_init else normal
        kernel_init = init(self.init_std)

        hidden, table = BertEmbeddings(
            self.vocab_size,
            self.max_positions,
            self.num_token_types,
            self.hidden_size,
            self.norm_epsilon,
            self.embedding_dropout,
            kernel_init,
            name="embeddings",
        )(tokens, positions, token_types, deterministic=deterministic)
        hidden_layers = [hidden]
        block = block_with_remat(self.remat)
        for i in range(self.num_layers):
            hidden, _ = block(
                self.num_heads,
                self.head_dim,
                self.ffn_size,
                self.activation,
                False,  # pre_norm
                self.norm_epsilon,
                self.attention_dropout,
                self.residual_dropout,
                self.fused_attention,
                kernel_init,
                kernel_init,
                self.dtype,
                name=f"layer_{i}",
            )(hidden, mask, None, None, deterministic)
            hidden_layers.append(hidden)
        output = {"hidden": hidden, "hidden_layers": tuple(hidden_layers)}

        if self.pooler:
            first = nn.Dense(
                self.hidden_size,
                kernel_init=kernel_init,
                dtype=self.dtype,
                name="pooler",
            )(hidden[:, 0])
            output["pooled"] = jnp.tanh(first)
        if self.next_sentence_head:
            if not self.pooler:
                raise UserError(
                    "model.next_sentence_head is True but model.pooler is False; the "
                    "head reads the pooled vector: set model.pooler to True"
                )
            output["next_sentence_logits"] = nn.Dense(
                2, kernel_init=kernel_init, dtype=jnp.float32, name="next_sentence"
            )(output["pooled"])
        if self.masked_lm_head:
            # Gathering first keeps the product with the vocabulary six times smaller.
            if predict_positions is not None:
                hidden = jnp.take_along_axis(
                    hidden, predict_positions[:, :, None], axis=1
                )
            hidden, bias = MaskedLmHead(
                self.activation,
                self.norm_epsilon,
                kernel_init,
                self.dtype,
                self.vocab_size,
                name="masked_lm",
            )(hidden)
            table = table.astype(self.dtype)
            output |= {
                "logits": tied_logits(hidden, table, bias),
                "logits_hidden": hidden,
                "logits_table": table,
                "logits_bias": bias,
            }
        return output
