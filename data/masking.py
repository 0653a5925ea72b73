"""Masking: which tokens of a row are to be predicted, and what is shown for them."""

import re

import numpy as np
from jaxtyping import Bool, Int32, Int64

from data.draws import Draws
from data.tokenizers import Tokenizer
from data.windows import Batch, ranges
from errors import UserError


class Masking:
    """The corruption of rows. (BERT, section 3.1 and appendix A.1.)

    `mask_rate` of the row's real tokens, special ones counted as in BERT's code but
    never chosen, are to be predicted, at most `max_predictions` = P. Of these,
    `mask_token_rate` become [MASK], `random_token_rate` a random piece, the rest stay.

    Unlike BERT's code, random pieces are never special or unused ones, and with
    `whole_word` the pieces of a word share one fate. A word that would overflow the
    number to predict is skipped, as there; but one of more than P pieces, which none
    can hold, is no word here, nor is any where all of the row would be skipped: in text
    without spaces a whole sentence may be one.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        mask_rate: float,
        mask_token_rate: float,
        random_token_rate: float,
        max_predictions: int,
        whole_word: bool,
    ):
        self.mask_rate = mask_rate
        self.mask_token_rate = mask_token_rate
        self.random_token_rate = random_token_rate
        self.kept_rate = 1 - mask_token_rate - random_token_rate
        self.max_predictions = max_predictions
        self.whole_word = whole_word
        self.mask_id = tokenizer.special_ids["mask"]
        self.starts_word = tokenizer.starts_word
        self.is_special = special_pieces(tokenizer)
        # Rows kept free: BERT's "[unused7]", or an id without a piece.
        is_unused = [
            not piece or bool(re.fullmatch(r"\[unused\d+\]", piece))
            for piece in tokenizer.pieces
        ]
        self.replacements = np.flatnonzero(~self.is_special & ~np.array(is_unused))
        if not self.replacements.size:
            raise UserError("the tokenizer has no piece that is not a special token.")

    def mask(self, batch: Batch, draws: Draws) -> Batch:
        """The rows with some tokens replaced, and what is to be predicted, in order.

        Args:
            batch: "tokens" and "segment_ids" [B, T], which are left as they are.

        Returns:
            The batch with "tokens" [B, T], and "predict_positions", "targets" and
            "weights" [B, P].
        """
        tokens, segment_ids = batch["tokens"], batch["segment_ids"]
        real = np.count_nonzero(segment_ids, axis=1)
        quota = np.rint(real * self.mask_rate).astype(np.int64)
        quota = np.clip(quota, 1, self.max_predictions)
        is_candidate = (segment_ids > 0) & ~self.is_special[tokens]
        words, sizes = self._words(tokens, segment_ids, is_candidate, quota)
        is_chosen = _choose_words(sizes, quota, draws)
        predicted = np.take_along_axis(is_chosen, words, axis=1) & is_candidate
        rows, positions = np.nonzero(predicted)
        slots = slots_of(predicted)
        targets = tokens[rows, positions]
        # One draw for a word, whatever its number of pieces.
        fates = draws.uniform(tokens.shape[1])[rows, words[rows, positions]]
        pieces = draws.uniform(self.max_predictions)[rows, slots]
        random = self.replacements[(pieces * len(self.replacements)).astype(np.int64)]
        corrupted = tokens.copy()
        corrupted[rows, positions] = np.where(
            fates < self.mask_token_rate,
            self.mask_id,
            np.where(
                fates < self.mask_token_rate + self.random_token_rate, random, targets
            ),
        )
        shown = predictions(predicted, tokens, self.max_predictions)
        return batch | {"tokens": corrupted} | shown

    def _words(
        self,
        tokens: Int32[np.ndarray, "B T"],
        segment_ids: Int32[np.ndarray, "B T"],
        is_candidate: Bool[np.ndarray, "B T"],
        quota: Int64[np.ndarray, " B"],
    ) -> tuple[Int64[np.ndarray, "B T"], Int64[np.ndarray, "B T"]]:
        """Which word of its row, 0, 1, .., each candidate belongs to, and the number of
        candidates in each word."""
        rows, length = tokens.shape
        if not self.whole_word:
            places = np.broadcast_to(np.arange(length), (rows, length))
            return places, is_candidate.astype(np.int64)
        goes_on = ~self.starts_word[tokens]
        goes_on[:, 0] = False
        goes_on[:, 1:] &= is_candidate[:, :-1]  # else after a special token
        goes_on[:, 1:] &= segment_ids[:, 1:] == segment_ids[:, :-1]
        words, sizes = _numbered(is_candidate, goes_on)
        fits = ((sizes > 0) & (sizes <= quota[:, None])).any(axis=1)
        longest = np.where(fits, self.max_predictions, quota)[:, None]
        if (sizes > longest).any():
            goes_on &= np.take_along_axis(sizes, words, axis=1) <= longest
            words, sizes = _numbered(is_candidate, goes_on)
        return words, sizes


def special_pieces(tokenizer: Tokenizer) -> Bool[np.ndarray, " V"]:
    """Those that are never hidden."""
    is_special = np.zeros(tokenizer.vocab_size, bool)
    is_special[[*tokenizer.special_ids.values()]] = True
    return is_special


def _numbered(
    is_candidate: Bool[np.ndarray, "B T"], goes_on: Bool[np.ndarray, "B T"]
) -> tuple[Int64[np.ndarray, "B T"], Int64[np.ndarray, "B T"]]:
    """The number of each candidate's word, and the number of candidates in each."""
    rows, length = is_candidate.shape
    words = np.cumsum(is_candidate & ~goes_on, axis=1) - 1
    np.maximum(words, 0, out=words)  # before the first candidate
    flat = (words + length * np.arange(rows)[:, None])[is_candidate]
    return words, np.bincount(flat, minlength=rows * length).reshape(rows, length)


def predictions(
    is_predicted: Bool[np.ndarray, "B T"], tokens: Int32[np.ndarray, "B T"], room: int
) -> Batch:
    """What is predicted in rows of tokens, in order.

    Returns:
        "predict_positions", "targets" and "weights" [B, room].
    """
    rows, positions = np.nonzero(is_predicted)
    values = {
        "predict_positions": (positions, np.int32),
        "targets": (tokens[rows, positions], np.int32),
        "weights": (1, np.float32),
    }
    found = {}
    for name, (value, dtype) in values.items():
        found[name] = np.zeros((len(tokens), room), dtype)
        found[name][rows, slots_of(is_predicted)] = value
    return found


def slots_of(is_predicted: Bool[np.ndarray, "B T"]) -> Int64[np.ndarray, " N"]:
    """The place of each prediction among those of its row."""
    counts = is_predicted.sum(axis=1)
    return ranges(np.zeros_like(counts), counts)


def _choose_words(
    sizes: Int64[np.ndarray, "B W"], quota: Int64[np.ndarray, " B"], draws: Draws
) -> Bool[np.ndarray, "B W"]:
    """Words in random order until the quota of pieces is full; skips what overflows.

    Each turn takes all words up to the first that overflows, and drops those that
    cannot fit any more, that one among them.
    """
    order = np.argsort(draws.bits(sizes.shape[1]), axis=1)
    waiting = np.take_along_axis(sizes, order, axis=1)
    is_taken = np.zeros(sizes.shape, bool)
    while waiting.any():
        takes = (waiting > 0) & (np.cumsum(waiting, axis=1) <= quota[:, None])
        is_taken |= takes
        quota = quota - np.sum(waiting, axis=1, where=takes)
        waiting = np.where(takes | (waiting > quota[:, None]), 0, waiting)
    is_chosen = np.zeros(sizes.shape, bool)
    np.put_along_axis(is_chosen, order, is_taken, axis=1)
    return is_chosen
