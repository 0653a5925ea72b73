"""Vectors of texts: the final hidden states, pooled."""

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import models
from data import inputs
from data.tokenizers import count_pieces
from models import Model
from tasks.encoding import make_frame
from use.run import Run

ROWS, STEP = 32, 32  # texts in a batch; its length is a multiple


def text_frame(run: Run) -> tuple[list[int], list[int]]:
    """The tokens before and after a text: as in the task, or as in pre-training."""
    if run.task is None and models.sees(run.config.model) == "left":
        return run.start, []
    frame = make_frame(run.tokenizer, run.config.model)
    return [frame.first], [frame.last]


def embed(
    run: Run, texts: Iterable[tuple[str, str]], pooling: str = "mean"
) -> Iterator[tuple[str, Float[np.ndarray, " D"]]]:
    """Place and vector of each text, float32, in order.

    The vector of a text without tokens, as of a blank line, is NaN. Says on stderr
    which texts those are, which were cut to the model's positions, and in the end how
    many of all pieces are unknown.
    """
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
        framed = [[*before, *ids[:room].tolist(), *after] for ids in pieces]
        order = sorted(range(len(framed)), key=lambda index: len(framed[index]))
        rows = min(ROWS, len(framed))
        vectors: list[Any] = [None] * len(framed)
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
            read = {name: batch[name] for name in run.base.inputs if name in batch}
            pooled = pooled_states(run.base, run.params, read, lengths, pooling)
            for index, vector in zip(chosen, np.asarray(pooled), strict=False):
                vectors[index] = vector if len(pieces[index]) else vector * np.nan
        yield from zip(places, vectors, strict=True)
    run.tell_unknown(unknown, total)


@partial(jax.jit, static_argnames=("model", "pooling"))
def pooled_states(
    model: Model,
    params: Any,
    batch: dict[str, Array],
    lengths: Int[Array, " B"],
    pooling: str,
) -> Float[Array, "B D"]:
    """The final hidden states: "first", "last", or the "mean" over `lengths`."""
    hidden = model.apply(params, batch)["hidden"].astype(jnp.float32)
    is_token = jnp.arange(hidden.shape[1])[None] < lengths[:, None]
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        return jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
    return jnp.where(is_token[..., None], hidden, 0).sum(axis=1) / lengths[:, None]
