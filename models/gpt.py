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
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from models.attention import causal_mask, dropout, padding_mask, segment_mask
from models.transformer import block_with_remat, check_length, layer_norm, tied_logits


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
        *,
        deterministic: bool,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "V D"]]:
        """Returns the sum and the word table that is to make the logits."""
        table = nn.Embed(
            self.vocab_size,
            self.hidden_size,
            embedding_init=normal(self.init_std),
            name="token",
        ).embedding
        position_table = nn.Embed(
            self.max_positions,
            self.hidden_size,
            embedding_init=normal(self.position_init_std),
            name="position",
        ).embedding

        def drop(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
            key = None if deterministic else self.make_rng("dropout")
            return dropout(values, self.dropout_rate, key)

        if self.table_dropout:
            # GPT-1's release drops elements of the tables themselves: the same ones for
            # every occurrence of a word in the batch, and in the softmax as well.
            table, position_table = drop(table), drop(position_table)
            return table[tokens] + position_table[positions], table
        return drop(table[tokens] + position_table[positions]), table


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
        """Keys and values for `length` tokens, none seen yet: pass it as `cache`.

        "index" is the number of slots filled, "segment_ids" [B, S] tells real tokens
        from padding, "layer_i" holds {"key", "value"}, each [B, S, H, K].
        """
        check_length(length, self.max_positions)
        shape = (batch_size, length, self.num_heads, self.head_dim)
        layers = {
            f"layer_{i}": {
                "key": jnp.zeros(shape, self.dtype),
                "value": jnp.zeros(shape, self.dtype),
            }
            for i in range(self.num_layers)
        }
        segment_ids = jnp.zeros((batch_size, length), jnp.int32)
        return {"index": jnp.int32(0), "segment_ids": segment_ids, **layers}

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        *,
        deterministic: bool,
        cache: dict | None = None,
    ) -> dict:
        """Returns {"hidden": [B, T, D], "logits": [B, T, V] float32}, and what the
        logits are made of: "logits_hidden" [B, T, D], "logits_table" [V, D]
        and "logits_bias" (None).

        Missing `segment_ids` are all 1, missing `positions` count from 0. With `cache`
        (of `empty_cache`) the tokens continue what it holds, missing positions count
        from its index, and "cache" is returned too; the caller sees to it that it does
        not overflow. Prompts of unequal length are padded on the left with segment 0,
        and come with their positions.
        """
        length = tokens.shape[1]
        if positions is None:  # rows of several short examples may be longer
            check_length(length, self.max_positions)
        start = jnp.int32(0) if cache is None else cache["index"]
        index = start + jnp.arange(length, dtype=jnp.int32)
        if segment_ids is None:
            segment_ids = jnp.ones(tokens.shape, jnp.int32)
        if positions is None:
            positions = jnp.broadcast_to(index[None], tokens.shape)
        key_segments, key_index = segment_ids, index
        if cache is not None:
            key_segments = lax.dynamic_update_slice_in_dim(
                cache["segment_ids"], segment_ids, start, axis=1
            )
            key_index = jnp.arange(key_segments.shape[1], dtype=jnp.int32)
        mask = (
            causal_mask(index, key_index)
            & padding_mask(key_segments)
            & segment_mask(segment_ids, key_segments)
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
        )(tokens, positions, deterministic=deterministic)
        output_std = self.init_std
        if self.residual_scaling:
            output_std /= math.sqrt(2 * self.num_layers)
        new_cache = {"index": start + length, "segment_ids": key_segments}
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
            )(
                hidden,
                mask,
                None if cache is None else cache[name],
                None if cache is None else start,
                deterministic,
            )
        if self.pre_norm:
            hidden = layer_norm(self.norm_epsilon, "final_norm")(hidden)
        table = table.astype(self.dtype)
        output = {
            "hidden": hidden,
            "logits": tied_logits(hidden, table, None),
            "logits_hidden": hidden,
            "logits_table": table,
            "logits_bias": None,
        }
        return output if cache is None else {**output, "cache": new_cache}
