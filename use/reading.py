"""Perplexity of any text, read through a window that slides on."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from data import inputs
from errors import UserError
from use import measured, scoring
from use.measured import Measured
from use.run import Run
from use.scoring import WAYS, Counted


class Window(NamedTuple):
    """Tokens begin .. end-1 of a document, of which first .. last-1 count."""

    begin: int
    end: int
    first: int
    last: int


def windows(count: int, size: int, stride: int, ahead: int) -> Iterator[Window]:
    """Every token of a document counts once, in windows of `size` that advance by
    `stride`; but at the ends those that count see `ahead` ones after them."""
    first = end = 0
    while first < count:
        end = min(count, max(size, end + stride)) if end else min(count, size)
        last = count if end == count else end - ahead
        yield Window(max(0, end - size), end, first, last)
        first = last


def perplexity(
    run: Run,
    documents: Iterable[str],
    way: str,
    stride: int | None = None,
    within_word: bool = False,
) -> dict[str, Measured]:
    """ "nats_per_token", "perplexity" and "bits_per_byte" of a text.

    A document begins and, to a causal model, ends as in pre-training. Says on stderr
    how many pieces are unknown.

    Args:
        stride: how far a window advances; None: half of it.

    Raises:
        UserError: no text, or a stride that is out of range.
    """
    size = window_size(run, way)
    stride = (size + 1) // 2 if stride is None else stride
    if not 1 <= stride <= size:
        raise UserError(
            f"--stride={stride} is out of range: the model reads {size} tokens at a "
            f"time, so from 1 to {size}"
        )
    texts, text_bytes, unknown, total = [], 0, 0, 0
    for chunk in inputs.in_chunks(documents):
        for text, pieces in zip(chunk, run.tokenizer.encode_batch(chunk), strict=True):
            text_bytes += len(text.encode())
            unknown += run.count_unpredictable(pieces)
            total += len(pieces)
            texts += cut(run, way, pieces, size, stride)
    if not texts:
        raise UserError("--input holds no text")
    run.tell_unknown(unknown, total)
    scores = scoring.log_probabilities(run, way, texts, within_word)
    nats = measured.ratio(-scores.sums, scores.counts)
    tokens_a_byte = nats.count / text_bytes
    bits = [part * tokens_a_byte / math.log(2) for part in nats[:4]]
    value, low, high = (math.exp(min(x, 700)) for x in (nats[0], nats[2], nats[3]))
    return {
        "nats_per_token": nats,
        "perplexity": Measured(value, value * nats.error, low, high, nats.count),
        "bits_per_byte": Measured(*bits, text_bytes),
    }


def window_size(run: Run, way: str) -> int:
    """Tokens of a document that a window has room for."""
    before, after = WAYS[way].frame(run)
    return scoring.longest(run, way) - len(before) - len(after)


def cut(
    run: Run, way: str, pieces: Int[np.ndarray, " N"], size: int, stride: int
) -> Sequence[Counted]:
    """The windows of a document, framed."""
    sees_both = WAYS[way].sees_both
    before, after = WAYS[way].frame(run)
    end = None if sees_both else run.end
    if end is not None:
        pieces = np.append(pieces, end)
    ahead = (size - stride) // 2 if sees_both else 0
    found = []
    for window in windows(len(pieces), size, stride, ahead):
        # What a causal model reads from the middle on has no start.
        start = before if sees_both or not window.begin else []
        tokens = np.concatenate([start, pieces[window.begin : window.end], after])
        shift = len(start) - window.begin
        first, last = window.first + shift, window.last + shift
        found.append(Counted(tokens.astype(np.int32), first, last))
    return found
