"""ELMo: two LSTM language models over words that are read by their characters.

Source: Peters et al. 2018, "Deep contextualized word representations", section 3;
what the paper leaves open is as in bilm-tf (training.py, model.py). One model reads a
text from left to right, the other from right to left; they share the embedding of a
word and the softmax. Axes: B rows, T words, C characters of a word, P projection of a
direction, V words of the softmax.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import normal, uniform, zeros
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Integer

from models.attention import dropout
from models.family import Family, Fields, TextFrame
from models.lstm import BiLstm, State, begins, continues, side_by_side
from models.transformer import (
    REMAT,
    Prediction,
    check_length,
    depth,
    padded_init,
    padded_size,
    without_padding,
)
from settings import Setting

ALPHABET = 261  # 256 bytes, and marks of sentences, words and what is empty
ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}


def around(bound: float) -> nn.initializers.Initializer:
    """Uniform between -bound and bound."""

    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return uniform(2 * bound)(key, shape, dtype) - bound

    return init


class CharacterCnn(nn.Module):
    """A word's vector: convolutions over its characters, the most of each over its
    places, highway layers, a projection."""

    character_size: int
    filters: tuple[tuple[int, int], ...]
    num_highways: int
    activation: str
    projection_size: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, characters: Integer[Array, "B T C"]) -> Float[Array, "B T P"]:
        rows, length, size = characters.shape
        activation = ACTIVATIONS[self.activation]
        table = nn.Embed(
            ALPHABET, self.character_size, embedding_init=around(1.0), name="character"
        ).embedding
        spelt = table[characters.reshape(rows * length, size)].astype(self.dtype)
        found = []
        for width, count in self.filters:
            std = (width * self.character_size) ** -0.5
            convolution = nn.Conv(
                count,
                (width,),
                padding="VALID",
                dtype=self.dtype,
                kernel_init=around(0.05) if self.activation == "relu" else normal(std),
                name=f"width_{width}",
            )
            found.append(activation(convolution(spelt).max(axis=1)))
        words = jnp.concatenate(found, axis=-1)
        inner = words.shape[-1]
        dense = functools.partial(
            nn.Dense, kernel_init=normal(inner**-0.5), dtype=self.dtype
        )
        for i in range(self.num_highways):
            # Its bias lets the words through at first.
            gate = dense(inner, bias_init=lambda *a: zeros(*a) - 2, name=f"gate_{i}")
            carried = jax.nn.sigmoid(gate(words))
            changed = activation(dense(inner, name=f"transform_{i}")(words))
            words = carried * changed + (1 - carried) * words
        words = dense(self.projection_size, name="projection")(words)
        return words.reshape(rows, length, -1).astype(jnp.float32)


class Elmo(nn.Module):
    """The bidirectional language model."""

    vocab_size: int  # words of the softmax; any word can be read
    max_positions: int
    max_characters: int
    num_layers: int
    cell_size: int
    projection_size: int
    cell_clip: float
    projection_clip: float
    character_size: int
    filters: tuple[tuple[int, int], ...]  # (characters, how many)
    num_highways: int
    activation: str
    residual_dropout: float
    softmax: bool
    dtype: DTypeLike = jnp.float32  # of the matrix products; parameters are float32
    remat: str = "none"  # see `transformer.REMAT`; of the character CNN and each layer
    fused_attention: bool = False  # it has none

    @nn.compact
    def __call__(
        self,
        characters: Integer[Array, "B T C"],
        segment_ids: Int[Array, "B T"] | None = None,
        dropout_rows: Int[Array, " B"] | None = None,
        state: tuple[State, ...] | None = None,
    ) -> dict:
        """Returns "hidden" [B, T, 2P], both directions of the last layer side by side,
        "hidden_layers" (the embedded words twice, then every layer's), "state" and,
        with the softmax, the predictions "causal_lm", of the next word, and
        "backward_lm", of the one before.

        Missing `segment_ids` mean one text a row. `dropout_rows` numbers the rows that
        dropout draws for; without it dropout is off. With the `state` of a call before
        the first text of a row goes on from there (and the last one, backwards).
        """
        assert characters.shape[2] == self.max_characters, characters.shape
        if segment_ids is None:  # rows of several short texts may be longer
            check_length(characters.shape[1], self.max_positions)
            segment_ids = jnp.ones(characters.shape[:2], jnp.int32)

        def drop(values: Float[Array, "2 B T P"]) -> Float[Array, "2 B T P"]:
            key = None if dropout_rows is None else self.make_rng("dropout")
            by_row = jnp.moveaxis(values, 0, 1)
            dropped = dropout(by_row, self.residual_dropout, key, dropout_rows)
            return jnp.moveaxis(dropped, 1, 0)

        cnn, layer = CharacterCnn, BiLstm
        if self.remat != "none":
            cnn = nn.remat(cnn, policy=REMAT[self.remat])
            layer = nn.remat(layer, policy=REMAT[self.remat])
        words = cnn(
            self.character_size,
            self.filters,
            self.num_highways,
            self.activation,
            self.projection_size,
            self.dtype,
            name="embeddings",
        )(characters)
        is_word = segment_ids > 0
        first = begins(segment_ids)
        if state is not None:
            first &= ~continues(segment_ids)
        hidden = jnp.stack([words, words])
        hidden_layers, new_state = [side_by_side(hidden)], []
        for i in range(self.num_layers):
            seen = drop(hidden)
            hidden, after = layer(
                self.cell_size,
                self.projection_size,
                self.cell_clip,
                self.projection_clip,
                self.dtype,
                name=f"layer_{i}",
            )(seen, first, is_word, None if state is None else state[i])
            if i > 0:
                hidden = hidden + seen
            hidden_layers.append(side_by_side(hidden))
            new_state.append(after)
        output = {
            "hidden": hidden_layers[-1],
            "hidden_layers": tuple(hidden_layers),
            "state": tuple(new_state),
        }
        if self.softmax:
            left, right = drop(hidden)
            predict = Softmax(
                self.vocab_size, self.projection_size, self.dtype, name="softmax"
            )
            table, bias = predict()
            output["causal_lm"] = Prediction(left, table, bias)
            output["backward_lm"] = Prediction(right, table, bias)
        return output


class Softmax(nn.Module):
    """The table and bias of the words that are predicted, one for both directions."""

    vocab_size: int
    projection_size: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "V P"], Float[Array, " V"] | None]:
        size = padded_size(self.vocab_size)
        init = padded_init(normal(self.projection_size**-0.5), self.vocab_size)
        table = self.param("embedding", init, (size, self.projection_size))
        bias = self.param("bias", zeros, (size,))
        return table.astype(self.dtype), without_padding(bias, self.vocab_size)


def forward_flops(
    fields: Fields, sizes: Mapping[str, int], length: int, predicted: int
) -> float:
    """FLOPs of a forward pass, of a word: 2 for each multiply-add.

    A convolution's kernel is used at every place of a word; the softmax, in full, in
    both directions.
    """
    vocabulary = padded_size(fields["vocab_size"])
    products = 2 * vocabulary * fields["projection_size"] * predicted / length
    for path, size in sizes.items():
        if path.endswith("kernel"):
            places = 1
            if "/width_" in path:
                width = int(path.split("/width_")[1].split("/")[0])
                places = fields["max_characters"] - width + 1
            products += size * places
    return 2 * products


def attends_not(config: Any) -> str | None:
    if config.run.fused_attention:
        return "run.fused_attention=True: an LSTM has no attention; set it False"
    return None


def fits_characters(config: Any) -> str | None:
    filters, most = config.model.filters, config.model.max_characters

    def fits(pair: Any) -> bool:
        is_pair = isinstance(pair, tuple | list) and len(pair) == 2
        return is_pair and all(type(x) is int and x > 0 for x in pair)

    if filters and all(fits(pair) and pair[0] <= most for pair in filters):
        return None
    return (
        f"model.filters={filters} must be pairs (characters, how many) of at most "
        f"model.max_characters={most}, such as ((1, 32), (2, 64))"
    )


FAMILY = Family(
    module=Elmo,
    inputs=("characters", "segment_ids", "state"),
    frames={"both": TextFrame("cls", "sep", "sep", readout="mean")},
    outputs={"causal_lm": {"softmax": True}, "backward_lm": {"softmax": True}},
    pooler=lambda _: "none",
    initializer=lambda _: normal(0.02),
    vocabulary=(r"softmax/(embedding|bias)",),
    placement=(
        (r"softmax/embedding", PartitionSpec("tensor", "fsdp")),
        (r"softmax/bias", PartitionSpec("tensor")),
        (r"layer_\d+/.*(input|recurrent)_kernel", PartitionSpec("fsdp", "tensor")),
        (r"layer_\d+/.*/bias", PartitionSpec("tensor")),
        (r"layer_\d+/.*projection_kernel", PartitionSpec("tensor", "fsdp")),
    ),
    cut_sizes={
        "fsdp": ("projection_size",),
        "tensor": ("vocab_size", "cell_size"),
    },
    pretraining_only=r"softmax/.*",
    depth=depth,
    forward_flops=forward_flops,
    dropouts=("residual_dropout",),
    settings=(
        Setting("model.vocab_size", int, "Words that it predicts.", ">=1"),
        Setting("model.max_positions", int, "Words that it reads at once.", ">=1"),
        Setting(
            "model.max_characters",
            int,
            "Bytes of a word with its two marks; the rest is not read.",
            ">=3",
        ),
        Setting("model.num_layers", int, "LSTMs of a direction.", ">=1"),
        Setting("model.cell_size", int, "Of an LSTM.", ">=1"),
        Setting(
            "model.projection_size", int, "Width of a direction, and of a word.", ">=1"
        ),
        Setting("model.cell_clip", float, "Bound of a cell's values.", ">0"),
        Setting("model.projection_clip", float, "Bound of an LSTM's outputs.", ">0"),
        Setting("model.character_size", int, "Width of a character's vector.", ">=1"),
        Setting("model.filters", tuple, "Of the CNN: (characters, how many) each."),
        Setting("model.num_highways", int, "Layers above the CNN.", ">=0"),
        Setting(
            "model.activation", str, "Of CNN and highways.", choices=(*ACTIVATIONS,)
        ),
        Setting(
            "model.residual_dropout",
            float,
            "Of each LSTM's input, and the end.",
            ">=0 <1",
        ),
        Setting("model.softmax", bool, "Whether it predicts words."),
    ),
    tiny={
        "vocab_size": 512,
        "max_positions": 32,
        "max_characters": 12,
        "num_layers": 2,
        "cell_size": 24,
        "projection_size": 8,
        "character_size": 4,
        "filters": ((1, 4), (2, 8), (3, 8)),
        "num_highways": 1,
    },
    rules=(attends_not, fits_characters),
)
