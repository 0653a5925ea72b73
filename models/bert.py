"""BERT: a bidirectional transformer with its two pre-training heads.

Source: Devlin et al. 2019, section 3 and appendix A; the release's modeling.py and
run_pretraining.py. Post-LN. The [PAD] row of the word table is learned, as in the
release. Its activation was "gelu_erf" at first and "gelu_tanh" from February 2019.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import Initializer, normal, truncated_normal
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from models.attention import dropout
from models.family import Family, Fields, TextFrame
from models.transformer import (
    ACTIVATIONS,
    CUT_SIZES,
    DROPOUTS,
    PLACEMENT,
    SETTINGS,
    TINY,
    Prediction,
    block_with_remat,
    depth,
    forward_flops,
    layer_norm,
    padded_size,
    placed,
    without_padding,
    word_table,
)
from settings import Setting


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
        dropout_rows: Int[Array, " B"] | None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "V D"]]:
        """Returns the embedded tokens and the word table, which the MLM head shares."""

        def table(rows: int, name: str) -> Float[Array, "rows D"]:
            return nn.Embed(
                rows, self.hidden_size, embedding_init=self.embedding_init, name=name
            ).embedding

        words = word_table(self.vocab_size, self.hidden_size, self.embedding_init)
        hidden = words[tokens]
        hidden += table(self.max_positions, "position")[positions]
        hidden += table(self.num_token_types, "token_type")[token_types]
        hidden = layer_norm(self.norm_epsilon, "norm")(hidden)
        key = None if dropout_rows is None else self.make_rng("dropout")
        return dropout(hidden, self.dropout_rate, key, dropout_rows), words


class MaskedLmHead(nn.Module):
    """dense, activation, layer norm; then the word table, and a bias of its own."""

    vocab_size: int
    activation: str
    norm_epsilon: float
    kernel_init: Initializer
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B P D"], table: Float[Array, "V D"]
    ) -> Prediction:
        hidden = nn.Dense(
            hidden.shape[-1],
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="transform",
        )(hidden)
        hidden = ACTIVATIONS[self.activation](hidden)
        hidden = layer_norm(self.norm_epsilon, "norm")(hidden)
        size = padded_size(self.vocab_size)
        bias = self.param("bias", nn.initializers.zeros, (size,))
        return Prediction(hidden, table, without_padding(bias, self.vocab_size))


class NextSentenceHead(nn.Module):
    """Whether B follows A (0) or is random text (1): one dense layer, in float32."""

    kernel_init: Initializer

    @nn.compact
    def __call__(self, pooled: Float[Array, "B D"]) -> Prediction:
        kernel = self.param("kernel", self.kernel_init, (pooled.shape[-1], 2))
        bias = self.param("bias", nn.initializers.zeros, (2,))
        return Prediction(pooled.astype(jnp.float32), kernel.T, bias)


class Bert(nn.Module):
    """Bidirectional encoder; each head exists only if its field says so.

    The next-sentence head reads the pooled vector, so it needs the pooler.
    """

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
    next_sentence_head: bool
    dtype: DTypeLike = jnp.float32  # of the matrix products; parameters are float32
    remat: str = "none"  # see `block_with_remat`
    fused_attention: bool = False  # see `attention`

    @property
    def kernel_init(self) -> Initializer:
        init = truncated_normal if self.truncated_init else normal
        return init(self.init_std)

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        token_types: Int[Array, "B T"] | None = None,
        predict_positions: Int[Array, "B P"] | None = None,
        dropout_rows: Int[Array, " B"] | None = None,
    ) -> dict:
        """Returns "hidden" [B, T, D] and "hidden_layers" (the embedded tokens, then
        every layer's output), and as the heads are there "pooled" [B, D] and the
        predictions "masked_lm" [B, P, V] and "next_sentence" [B, 2].

        Missing `segment_ids` mean one document a row, `positions` count from 0,
        `token_types` are 0; without `predict_positions` every position is predicted
        (P = T). `dropout_rows` numbers the rows that dropout draws for; without it
        dropout is off.
        """
        positions, mask = placed(
            tokens,
            segment_ids,
            positions,
            None,
            causal=False,
            max_positions=self.max_positions,
        )
        if token_types is None:
            token_types = jnp.zeros(tokens.shape, jnp.int32)
        kernel_init = self.kernel_init

        hidden, table = BertEmbeddings(
            self.vocab_size,
            self.max_positions,
            self.num_token_types,
            self.hidden_size,
            self.norm_epsilon,
            self.embedding_dropout,
            kernel_init,
            name="embeddings",
        )(tokens, positions, token_types, dropout_rows)
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
            )(hidden, mask, None, dropout_rows)
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
            head = NextSentenceHead(kernel_init, name="next_sentence")
            output["next_sentence"] = head(output["pooled"])
        if self.masked_lm_head:
            # Gathering first keeps the product with the vocabulary six times smaller.
            if predict_positions is not None:
                hidden = jnp.take_along_axis(
                    hidden, predict_positions[:, :, None], axis=1
                )
            output["masked_lm"] = MaskedLmHead(
                self.vocab_size,
                self.activation,
                self.norm_epsilon,
                kernel_init,
                self.dtype,
                name="masked_lm",
            )(hidden, table.astype(self.dtype))
        return output


def pooler(fields: Fields) -> str:
    return "base" if fields["pooler"] else "new"


def next_sentence_is_pooled(config: Any) -> str | None:
    if config.model.next_sentence_head and not config.model.pooler:
        return (
            "model.next_sentence_head=True reads the pooler, but model.pooler=False: "
            "set model.pooler=True, or model.next_sentence_head=False"
        )
    return None


FAMILY = Family(
    module=Bert,
    inputs=("tokens", "segment_ids", "positions", "token_types", "predict_positions"),
    # BERT, section 3.2
    frames={"both": TextFrame("cls", "sep", "sep", readout="first")},
    outputs={
        "masked_lm": {"masked_lm_head": True},
        "next_sentence": {"next_sentence_head": True, "pooler": True},
    },
    pooler=pooler,
    initializer=lambda model: model.kernel_init,
    vocabulary=(r"embeddings/token/embedding", r"masked_lm/bias"),
    placement=PLACEMENT,
    cut_sizes=CUT_SIZES,
    pretraining_only=r"(masked_lm|next_sentence|pooler)/.*",
    depth=depth,
    forward_flops=forward_flops,
    dropouts=DROPOUTS,
    settings=(
        *SETTINGS,
        Setting("model.num_token_types", int, "Sides of a pair: 2.", ">=1"),
        Setting("model.truncated_init", bool, "Fresh kernels cut at two init_std."),
        Setting("model.pooler", bool, "Dense layer and tanh on [CLS]."),
        Setting("model.masked_lm_head", bool, "Predicts masked words."),
        Setting("model.next_sentence_head", bool, "Predicts whether B follows A."),
    ),
    tiny=TINY,
    rules=(next_sentence_is_pooled,),
)
