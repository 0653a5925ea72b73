"""A layer of LSTMs with projected outputs, one in each direction (Sak et al. 2014).

Axes: B rows, T words, I width of the input, H cell, P projected output; 2 directions.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import glorot_uniform, zeros
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

FORGET_BIAS = 1.0  # added to the forget gate, which starts open

State = tuple[Float[Array, "2 B H"], Float[Array, "2 B P"]]  # cells, outputs


class Direction(nn.Module):
    """The parameters of an LSTM with a projected output."""

    cell_size: int
    projection_size: int

    @nn.compact
    def __call__(self, width: int) -> tuple[Array, Array, Array, Array]:
        """Returns kernel of the input, of the output before, bias, projection."""
        gates, init = 4 * self.cell_size, glorot_uniform()
        return (
            self.param("input_kernel", init, (width, gates)),
            self.param("recurrent_kernel", init, (self.projection_size, gates)),
            self.param("bias", zeros, (gates,)),
            self.param(
                "projection_kernel", init, (self.cell_size, self.projection_size)
            ),
        )


class BiLstm(nn.Module):
    """The layer; gates in TensorFlow's order: input, candidate, forget, output."""

    cell_size: int
    projection_size: int
    cell_clip: float
    projection_clip: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "2 B T I"],
        begins: Bool[Array, "2 B T"],
        is_word: Bool[Array, "B T"],
        state: State | None,
    ) -> tuple[Float[Array, "2 B T P"], State]:
        """The outputs of both directions, and their state after the last word.

        Args:
            begins: where a text begins, for the second direction its last word: there
                the state is zero, but for the first text's with a `state` given.
        """
        ways = [
            Direction(self.cell_size, self.projection_size, name=name)(inputs.shape[-1])
            for name in ("forward", "backward")
        ]
        kernel, recurrent, bias, projection = (
            jnp.stack(both) for both in zip(*ways, strict=True)
        )
        recurrent, projection = (x.astype(self.dtype) for x in (recurrent, projection))
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        # What does not depend on the words before: one large product outside the loop.
        given = product(
            "dbtp,dpg->tdbg", inputs.astype(self.dtype), kernel.astype(self.dtype)
        )
        given += bias[None, :, None]

        def in_order(values: Array, of_time: int) -> Array:
            """Time first, the second direction's from its end on."""
            values = jnp.moveaxis(values, of_time, 0)
            return jnp.stack([values[:, 0], values[::-1, 1]], axis=1)

        words = jnp.broadcast_to(is_word, (2, *is_word.shape))
        steps = (
            in_order(given, 0),
            in_order(begins, 2)[..., None],
            in_order(words, 2)[..., None],
        )
        rows = inputs.shape[1]
        if state is None:
            state = (
                jnp.zeros((2, rows, self.cell_size)),
                jnp.zeros((2, rows, self.projection_size)),
            )

        def step(state: State, at: tuple) -> tuple[State, Array]:
            given, begins, is_word = at
            cell, output = (jnp.where(begins, 0, part) for part in state)
            gates = given + product(
                "dbp,dpg->dbg", output.astype(self.dtype), recurrent
            )
            enter, candidate, keep, leave = jnp.split(gates, 4, axis=-1)
            cell = jax.nn.sigmoid(keep + FORGET_BIAS) * cell
            cell += jax.nn.sigmoid(enter) * jnp.tanh(candidate)
            cell = jnp.clip(cell, -self.cell_clip, self.cell_clip)
            output = jax.nn.sigmoid(leave) * jnp.tanh(cell)
            output = product("dbh,dhp->dbp", output.astype(self.dtype), projection)
            output = jnp.clip(output, -self.projection_clip, self.projection_clip)
            # Padding leaves the state as it is.
            new = tuple(
                jnp.where(is_word, after, before)
                for after, before in zip((cell, output), state, strict=True)
            )
            return new, output

        state, outputs = lax.scan(step, state, steps)
        outputs = jnp.stack([outputs[:, 0], outputs[::-1, 1]])
        return outputs.swapaxes(1, 2), state


def begins(segment_ids: Int[Array, "B T"]) -> Bool[Array, "2 B T"]:
    """Whether a word is that of its text that each direction reads first."""
    differs = segment_ids[:, 1:] != segment_ids[:, :-1]
    edge = jnp.ones((len(segment_ids), 1), bool)
    ahead = jnp.concatenate([edge, differs], axis=1)
    return jnp.stack([ahead, jnp.concatenate([differs, edge], axis=1)])


def continues(segment_ids: Int[Array, "B T"]) -> Bool[Array, "2 B T"]:
    """Whether a word, or the padding before, belongs to the text that each direction
    reads first."""
    most = segment_ids.max(axis=1, keepdims=True)
    first = jnp.where(segment_ids > 0, segment_ids, most).min(axis=1, keepdims=True)
    return jnp.stack(
        [(segment_ids == end) | (segment_ids == 0) for end in (first, most)]
    )


def side_by_side(hidden: Float[Array, "2 B T P"]) -> Float[Array, "B T 2*P"]:
    return jnp.concatenate([hidden[0], hidden[1]], axis=-1)
