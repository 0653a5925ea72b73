"""Masking: which tokens of a row are to be predicted, and what is shown for them."""

import re

import numpy as np
from jaxtyping import Bool, Int32, Int64

from data.tokenizers import Tokenizer
from data.windows import Example, padded
from errors import UserError


class Masking:
    """The corruption of a row. (BERT, section 3.1 and appendix A.1.)

    `mask_rate` of the row's real tokens, special ones counted as in BERT's code but
    never chosen, are to be predicted, at most `max_predictions` = P. Of these,
    `mask_token_rate` become [MASK], `random_token_rate` a random piece, the rest stay.

    Unlike BERT's code, random pieces are never special or unused ones, and with
    `whole_word` the pieces of a word share one fate; a word that would overflow the
    number to predict is skipped, as there.
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
        self.max_predictions = max_predictions
        self.whole_word = whole_word
        self.mask_id = tokenizer.special_ids["mask"]
        self.starts_word = tokenizer.starts_word
        self.is_special = np.zeros(tokenizer.vocab_size, bool)
        self.is_special[list(tokenizer.special_ids.values())] = True
        # Rows kept free: BERT's "[unused7]", or an id without a piece.
        is_unused = [
            not piece or bool(re.fullmatch(r"\[unused\d+\]", piece))
            for piece in tokenizer.pieces
        ]
        self.replacements = np.flatnonzero(~self.is_special & ~np.array(is_unused))
        if not self.replacements.size:
            raise UserError("the tokenizer has no piece that is not a special token.")

    def mask(self, row: Example, generator: np.random.Generator) -> Example:
        """The row with some tokens replaced, and what is to be predicted, in order."""
        tokens, segment_ids = row["tokens"], row["segment_ids"]
        real = np.count_nonzero(segment_ids)
        quota = min(self.max_predictions, max(1, round(real * self.mask_rate)))
        candidates = np.flatnonzero((segment_ids > 0) & ~self.is_special[tokens])
        words = self._words(tokens, segment_ids, candidates)
        is_chosen = _choose_words(np.bincount(words), quota, generator)
        positions = candidates[is_chosen[words]]
        # One draw for a word, whatever its number of pieces.
        draw = generator.random(len(is_chosen))[words[is_chosen[words]]]
        targets = tokens[positions]
        random = generator.choice(self.replacements, len(positions))
        replaced = np.where(
            draw < self.mask_token_rate,
            self.mask_id,
            np.where(
                draw < self.mask_token_rate + self.random_token_rate, random, targets
            ),
        )
        corrupted = tokens.copy()
        corrupted[positions] = replaced
        predictions = {
            "predict_positions": positions.astype(np.int32),
            "targets": targets,
            "weights": np.ones(len(positions), np.float32),
        }
        return row | {"tokens": corrupted} | padded(predictions, self.max_predictions)

    def _words(
        self,
        tokens: Int32[np.ndarray, " T"],
        segment_ids: Int32[np.ndarray, " T"],
        candidates: Int64[np.ndarray, " C"],
    ) -> Int64[np.ndarray, " C"]:
        """Which word of the row, 0, 1, .., each candidate belongs to."""
        if not self.whole_word:
            return np.arange(len(candidates))
        begins = (
            self.starts_word[tokens[candidates]]
            | (np.diff(candidates, prepend=-2) > 1)  # after a special token
            | (np.diff(segment_ids[candidates], prepend=0) > 0)
        )
        return np.cumsum(begins) - 1


def _choose_words(
    sizes: Int64[np.ndarray, " W"], quota: int, generator: np.random.Generator
) -> Bool[np.ndarray, " W"]:
    """Words in random order until the quota of pieces is full; skips what overflows."""
    is_chosen = np.zeros(len(sizes), bool)
    pieces = sizes.tolist()
    for word in generator.permutation(len(sizes)).tolist():
        if pieces[word] <= quota:
            is_chosen[word] = True
            quota -= pieces[word]
            if not quota:
                break
    return is_chosen
