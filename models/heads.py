"""Heads for labelled tasks, and a pre-trained base with one of them on top.

Sources: GPT-1 (Radford et al. 2018, section 3.3), BERT (Devlin et al. 2019, section 4;
the release's run_classifier.py and run_squad.py), ELMo (Peters et al. 2018, section
3.2: a mean of all layers under a small network of the task's own). All that is new
lies under `head/`; the base's parameters keep the paths that they have in pre-training.
Axes: B rows, T tokens, E examples in a row, R readout positions, K outputs, D width.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import Initializer, ones, zeros
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

import models
from models.attention import dropout
from models.family import Fields
from models.lstm import BiLstm, begins, side_by_side

UNBOUNDED = (float("inf"), float("inf"))  # neither cells nor outputs are cut


def pool(
    states: Float[Array, "*slots D"], kernel_init: Initializer, dtype: DTypeLike
) -> Float[Array, "*slots D"]:
    """BERT's pooler, a dense layer and tanh; called within a module."""
    width = states.shape[-1]
    dense = nn.Dense(width, kernel_init=kernel_init, dtype=dtype, name="pooler")
    return jnp.tanh(dense(states))


def gather(
    hidden: Float[Array, "B T D"], positions: Int[Array, "B E R"]
) -> Float[Array, "B E R D"]:
    """The hidden states at the positions."""
    flat = positions.reshape(positions.shape[0], -1)
    states = jnp.take_along_axis(hidden, flat[:, :, None], axis=1)
    return states.reshape(*positions.shape, hidden.shape[-1])


def mean(
    hidden: Float[Array, "B T D"],
    segment_ids: Int[Array, "B T"],
    positions: Int[Array, "B E R"],
) -> Float[Array, "B E R D"]:
    """The mean hidden state of the sequence that each position belongs to."""
    own = jnp.take_along_axis(segment_ids, positions.reshape(len(positions), -1), 1)
    is_own = (segment_ids[:, None] == own[:, :, None]) & (own > 0)[:, :, None]
    count = jnp.maximum(is_own.sum(axis=-1, keepdims=True), 1)
    states = jnp.einsum("bet,btd->bed", is_own.astype(hidden.dtype), hidden) / count
    return states.reshape(*positions.shape, hidden.shape[-1])


class ScalarMix(nn.Module):
    """`scale * sum of softmax(weights) * layers`, at first their plain mean (ELMo,
    equation 1)."""

    @nn.compact
    def __call__(
        self, layers: tuple[Float[Array, "B T D"], ...]
    ) -> Float[Array, "B T D"]:
        weights = self.param("weights", zeros, (len(layers),))
        scale = self.param("scale", ones, ())
        shares = scale * jax.nn.softmax(weights)
        mixed = (share * layer for share, layer in zip(shares, layers, strict=True))
        return functools.reduce(jnp.add, mixed)


class Features(nn.Module):
    """What the head reads of a base: its last layer or a mix of all, as it is or
    through an LSTM in each direction."""

    mixes: bool
    size: int  # of an LSTM; 0: none
    dropout_rate: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        output: dict,
        segment_ids: Int[Array, "B T"],
        dropout_rows: Int[Array, " B"] | None,
    ) -> Float[Array, "B T D"]:
        states = output["hidden"]
        if self.mixes:
            states = ScalarMix(name="mix")(output["hidden_layers"])
        if not self.size:
            return states
        key = None if dropout_rows is None else self.make_rng("dropout")
        states = dropout(states, self.dropout_rate, key, dropout_rows)
        lstm = BiLstm(self.size, self.size, *UNBOUNDED, self.dtype, name="lstm")
        hidden, _ = lstm(
            jnp.stack([states, states]), begins(segment_ids), segment_ids > 0, None
        )
        return side_by_side(hidden)


class Head(nn.Module):
    """Scores of vectors: [pooler], dropout, dense layer in float32."""

    features: Features
    num_outputs: int
    new_pooler: bool  # of a base that was pre-trained without one and wants one
    dropout_rate: float
    kernel_init: Initializer
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        states: Float[Array, "B *slots D"],
        dropout_rows: Int[Array, " B"] | None,
    ) -> Float[Array, "B *slots K"]:
        if self.new_pooler:
            states = pool(states, self.kernel_init, self.dtype)
        key = None if dropout_rows is None else self.make_rng("dropout")
        states = dropout(states, self.dropout_rate, key, dropout_rows)
        return nn.Dense(
            self.num_outputs,
            kernel_init=self.kernel_init,
            dtype=jnp.float32,
            name="dense",
        )(states)


class FineTuned(nn.Module):
    """A base and the head for a kind of task on top."""

    base: nn.Module
    head: Head
    reads: str  # "tokens", "examples" or "readouts"
    readout: str  # of `TextFrame`
    base_pooler: bool  # what is read out goes through the pre-trained pooler
    kernel_init: Initializer

    def setup(self) -> None:
        nn.share_scope(self, self.base)  # so the paths are those of pre-training

    @nn.compact
    def __call__(
        self,
        *,
        readout_positions: Int[Array, "B E R"] | None = None,
        dropout_rows: Int[Array, " B"] | None = None,
        **arrays: Any,
    ) -> dict:
        """Returns what the base returns for its `arrays`, and "scores", float32:
        [B, T, K] of tokens, [B, E, K] of examples, [B, E, R, K] of readouts."""
        output = self.base(**arrays, dropout_rows=dropout_rows)
        states = self.head.features(output, arrays["segment_ids"], dropout_rows)
        if self.reads != "tokens":
            if self.readout == "mean":
                states = mean(states, arrays["segment_ids"], readout_positions)
            else:
                states = gather(states, readout_positions)
            if self.reads == "examples":
                states = states.sum(axis=2)
            if self.base_pooler:
                states = pool(states, self.kernel_init, self.base.dtype)
        return {**output, "scores": self.head(states, dropout_rows)}


def build(
    fields: Fields,
    spec: Any,
    *,
    num_labels: int,
    head: Fields,
    keep: tuple[str, ...] = (),
    remat: str = "none",
    fused_attention: bool = False,
) -> models.Model:
    """The base of a config's `model` with a new head.

    Of what the base can predict only `keep` stays.

    Args:
        spec: what the head reads, and how much it says of it (`tasks/record.py`).
        head: of a config.
    """
    family = models.family_of(fields)
    base = models.build(models.only_with(fields, keep), remat, fused_attention)
    init, dtype = family.initializer(base.module), base.module.dtype
    has_lstm = head["kind"] == "lstm"  # which reads as ELMo does
    takes_mean = has_lstm or head["pooling"] == "mean"
    readout = "mean" if takes_mean else models.frame_of(fields).readout
    # A pooler is for the token that is read out, of an example and not of a row.
    unpooled = takes_mean or spec.reads == "tokens"
    pooler = "none" if unpooled else family.pooler(fields)
    size = head["size"] if has_lstm else 0
    features = Features(head["layers"] == "mix", size, head["dropout"], dtype)
    top = Head(
        features,
        spec.num_outputs(num_labels),
        pooler == "new",
        head["dropout"] if spec.drops else 0.0,
        init,
        dtype,
    )
    module = FineTuned(base.module, top, spec.reads, readout, pooler == "base", init)
    return models.Model(module, (*base.inputs, "readout_positions"))
