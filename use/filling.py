"""Filling in masked words."""

import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

import models
from data.tokenizers import Tokenizer, count_pieces
from errors import UserError
from models.transformer import logits
from use.run import Run

STAND_INS = 64  # words tried in a mask's place that begin words; as many that do not


def fill_mask(run: Run, text: str, top: int = 5) -> list[list[tuple[str, float]]]:
    """For each [MASK] in the text the `top` likeliest words, with their probabilities.

    Says on stderr how many pieces are unknown.

    Raises:
      UserError: the run cannot do it, no mask in the text, a text that is too long, or
        no words asked for.
    """
    run.check("fill_mask")
    if top < 1:
        raise UserError(f"--top={top} must be at least 1")
    if "masked_lm" not in models.outputs_of(models.seeing(run.config.model, "both")):
        raise UserError(
            f"fill_mask needs a masked LM head, and the model of {run.folder} has "
            "none: fine-tune it, or use predict.py embed"
        )
    ids, masked = encode_masked(run, text)
    run.tell_unknown(*count_pieces(run.tokenizer, ids))
    found = []
    for row in mask_probabilities(run, ids, masked):
        best = np.argsort(row)[::-1][:top]
        found.append([(run.tokenizer.decode([i]), float(row[i])) for i in best])
    return found


def encode_masked(
    run: Run, text: str
) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " P"]]:
    """`[CLS] text [SEP]`, the mask token's id at each [MASK], and where those are."""
    special = run.tokenizer.special_ids
    name = run.tokenizer.pieces[special["mask"]]
    if name not in text:
        raise UserError(f"no {name} in {text!r}: write {name} where a word is missing")
    pieces = pieces_around_masks(run.tokenizer, text.split(name))
    tokens = np.array([special["cls"], *pieces, special["sep"]], np.int32)
    if len(tokens) > run.config.model.max_positions:
        raise UserError(
            f"the text has {len(tokens)} tokens, but the model has "
            f"{run.config.model.max_positions} positions: shorten it ({text[:60]!r}...)"
        )
    return tokens, np.flatnonzero(tokens == special["mask"]).astype(np.int32)


def pieces_around_masks(
    tokenizer: Tokenizer, parts: list[str]
) -> Int[np.ndarray, " T"]:
    """The pieces of the parts of a text, and between them the mask token.

    Training masks pieces of a whole text, so that a word's piece goes with the space
    before it. Here a word of one piece is put in the place of each mask, and its piece
    becomes the mask. Where there is no such word the parts are encoded each alone.
    """
    mask, words = tokenizer.special_ids["mask"], stand_ins(tokenizer)
    chosen = list(words[:1]) * (len(parts) - 1)
    for place in range(len(chosen)):
        tried = [(*chosen[:place], word, *chosen[place + 1 :]) for word in words]
        encoded = encode_filled(tokenizer, parts, tried)
        # With the fewest pieces the word's space is none of its own.
        fitting = [
            (len(ids), number)
            for number, (ids, found) in enumerate(encoded)
            if found[place] >= 0
        ]
        if fitting:
            chosen[place] = words[min(fitting)[1]]
    if chosen:
        ((ids, places),) = encode_filled(tokenizer, parts, [chosen])
        if min(places) >= 0:
            ids[places] = mask
            return ids
    alone = [[*ids, mask] for ids in tokenizer.encode_batch(parts)]
    return np.array([*itertools.chain(*alone)][:-1], np.int32)


def encode_filled(
    tokenizer: Tokenizer, parts: list[str], fillings: list[Sequence[str]]
) -> list[tuple[Int[np.ndarray, " T"], list[int]]]:
    """For each filling of the gaps between the parts with words the ids of the whole,
    and of each word which piece it is; -1 where it is not one, or a part of one."""
    texts = [
        "".join(itertools.chain(*zip(parts, [*words, ""], strict=True)))
        for words in fillings
    ]
    encoded = []
    for text, words, (ids, spans) in zip(
        texts, fillings, tokenizer.encode_batch_offsets(texts), strict=True
    ):
        places, end = [], 0
        for part, word in zip(parts, words, strict=False):
            begin, end = end + len(part), end + len(part) + len(word)
            # One that spans nothing is a part of a character.
            (own,) = np.nonzero((spans[:, 1] > begin) & (spans[:, 0] < end))
            is_whole = len(own) == 1 and text[slice(*spans[own[0]])].strip() == word
            places.append(int(own[0]) if is_whole else -1)
        encoded.append((ids, places))
    return encoded


@functools.lru_cache(maxsize=1)
def stand_ins(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Words that are one piece where they begin a word, and such that are one within,
    the first ones of the vocabulary."""

    def words(starts: bool) -> Iterator[str]:
        for index in np.flatnonzero(tokenizer.starts_word == starts):
            word = tokenizer.decode([index]).strip()
            if word.isalnum():
                yield word

    kinds = (itertools.islice(words(starts), STAND_INS) for starts in (True, False))
    return tuple(dict.fromkeys(itertools.chain(*kinds)))


def mask_probabilities(
    run: Run, ids: Int[np.ndarray, " T"], masked: Int[np.ndarray, " P"]
) -> Float[np.ndarray, "P V"]:
    """Probabilities of the tokens at the masked positions."""
    batch = {"tokens": ids[None], "predict_positions": masked[None]}
    model = run.model.seeing("both")
    output = model.apply(run.params, jax.tree.map(jnp.asarray, batch))
    return np.asarray(jax.nn.softmax(logits(output["masked_lm"])[0], axis=-1))
