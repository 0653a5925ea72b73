"""Vectors of texts: hidden states of some layers, pooled or token by token."""

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import models
from data import inputs
from data.tokenizers import count_pieces
from errors import UserError
from models import Model
from models.heads import ScalarMix
from tasks.encoding import make_frame
from use.run import Run

ROWS, STEP = 32, 32  # texts in a batch; its length is a multiple


def text_frame(run: Run) -> tuple[list[int], list[int]]:
    """The tokens before and after a text: as in the task, or as in pre-training."""
    if run.task is None and models.sees(run.config.model) == "left":
        return run.start, []
    frame = make_frame(run.tokenizer, run.config.model)
    return [frame.first], [frame.last]


class Embedded(NamedTuple):
    """A text's vectors, float32.

    Attributes:
        pieces: of the text, as far as it was read, without what frames it.
        vectors: [D], or [pieces, D] where nothing is pooled; of all layers each has an
            axis [layers] in front.
    """

    place: str
    pieces: list[str]
    vectors: Float[np.ndarray, "..."]


def embed(
    run: Run,
    texts: Iterable[tuple[str, str]],
    pooling: str = "mean",
    layer: str = "last",
) -> Iterator[Embedded]:
    """The vectors of each text, in order.

    Those of a text without tokens, as of a blank line, are NaN. Says on stderr which
    texts those are, which were cut to the model's positions, and in the end how many of
    all pieces are unknown.

    Args:
        pooling: "mean", "first" or "last" over the tokens of a text and its frame, or
            "none".
        layer: "last", "all", the learnt "mix" of a run whose head has one, or a number,
            0 for the embedded tokens.

    Raises:
        UserError: the model has no such layer, or the run no mix.
    """
    check_layer(run, layer)
    before, after = text_frame(run)
    limit = run.config.model.max_positions
    room = limit - len(before) - len(after)
    unknown = total = 0
    for chunk in inputs.in_chunks(texts):
        places = [place for place, _ in chunk]
        pieces = run.tokenizer.encode_batch([text for _, text in chunk])
        for place, ids in zip(places, pieces, strict=True):
            if not len(ids):
                print(f"{place}: no text, no embedding (NaN)", file=sys.stderr)
            if len(ids) > room:
                print(f"{place}: cut from {len(ids)} to {room} pieces", file=sys.stderr)
        unknown += sum(count_pieces(run.tokenizer, ids)[0] for ids in pieces)
        total += sum(map(len, pieces))
        read = [ids[:room].tolist() for ids in pieces]
        framed = [[*before, *ids, *after] for ids in read]
        order = sorted(range(len(framed)), key=lambda index: len(framed[index]))
        rows = min(ROWS, len(framed))
        found: list[Any] = [None] * len(framed)
        for begin in range(0, len(order), rows):
            chosen = order[begin : begin + rows]
            longest = len(framed[chosen[-1]])
            length = min(-(-longest // STEP) * STEP, limit)
            tokens = np.zeros((rows, length), np.int32)
            lengths = np.ones(rows, np.int32)  # of the rows that stay empty, too
            for row, index in enumerate(chosen):
                lengths[row] = len(framed[index])
                tokens[row, : lengths[row]] = framed[index]
            segments = (np.arange(length) < lengths[:, None]).astype(np.int32)
            batch = run.reads({"tokens": tokens, "segment_ids": segments})
            batch = {name: batch[name] for name in run.base.inputs if name in batch}
            states = states_of(run.base, run.params, batch, lengths, pooling, layer)
            for index, vectors in zip(chosen, np.asarray(states), strict=False):
                own = vectors if layer == "all" else vectors[0]
                if pooling == "none":
                    first = len(before)
                    own = own[..., first : first + len(read[index]), :]
                found[index] = own if read[index] else own * np.nan
        for place, ids, vectors in zip(places, read, found, strict=True):
            yield Embedded(place, [run.tokenizer.pieces[i] for i in ids], vectors)
    run.tell_unknown(unknown, total)


def check_layer(run: Run, layer: str) -> None:
    """Raises UserError where a run has no such layer."""
    top = run.config.model.num_layers
    if layer == "mix" and (run.task is None or run.config.head.layers != "mix"):
        raise UserError(
            f"--layer=mix: {run.folder} has learnt no mix of its layers; fine-tune "
            "with configs/finetune/features.py, or choose another layer"
        )
    is_number = layer.isdecimal() and int(layer) <= top
    if layer not in ("last", "all", "mix") and not is_number:
        raise UserError(
            f"--layer={layer}: choose last, all, mix, or one from 0, the embedded "
            f"tokens, to {top}"
        )


@partial(jax.jit, static_argnames=("model", "pooling", "layer"))
def states_of(
    model: Model,
    params: Any,
    batch: dict[str, Array],
    lengths: Int[Array, " B"],
    pooling: str,
    layer: str,
) -> Float[Array, "B L ..."]:
    """The hidden states of some layers, pooled over `lengths`: [B, L, D], or
    [B, L, T, D]."""
    output = model.apply(params, batch)
    layers = (output["hidden"],) if layer == "last" else output["hidden_layers"]
    if layer == "mix":
        mix = {"params": params["head"]["features"]["mix"]}
        layers = (ScalarMix().apply(mix, layers),)
    elif layer.isdecimal():
        layers = (layers[int(layer)],)
    hidden = jnp.stack(layers, axis=1).astype(jnp.float32)
    if pooling == "none":
        return hidden
    if pooling == "first":
        return hidden[:, :, 0]
    if pooling == "last":
        last = lengths[:, None, None, None] - 1
        return jnp.take_along_axis(hidden, last, axis=2)[:, :, 0]
    is_token = jnp.arange(hidden.shape[2])[None] < lengths[:, None]
    total = jnp.where(is_token[:, None, :, None], hidden, 0).sum(axis=2)
    return total / lengths[:, None, None]


def width(run: Run) -> int:
    """Of a vector."""
    one = np.ones((1, 1), np.int32)
    batch = run.reads({"tokens": one, "segment_ids": one})
    read = {name: batch[name] for name in run.base.inputs if name in batch}
    return jax.eval_shape(run.base.apply, run.params, read)["hidden"].shape[-1]


def neighbours(
    vectors: Float[np.ndarray, "N D"], count: int
) -> tuple[Int[np.ndarray, "N K"], Float[np.ndarray, "N K"]]:
    """For each vector the nearest others by cosine, and how near they are; K is at most
    `count`. With one that is NaN it is -inf, as with itself."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(norms > 0, norms, 1)
    nearness = np.nan_to_num(units @ units.T, nan=-np.inf)
    np.fill_diagonal(nearness, -np.inf)
    nearest = np.argsort(-nearness, axis=1, kind="stable")[:, : len(vectors) - 1]
    nearest = nearest[:, :count]
    return nearest, np.take_along_axis(nearness, nearest, axis=1)
