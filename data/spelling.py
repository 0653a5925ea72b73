"""Words as the bytes that they are spelt with, for models that read characters.

Of each word the UTF-8 bytes between marks of its begin and end, filled up: the ids of
ELMo (Peters et al. 2018; bilm-tf, data.py). A word that the vocabulary lacks is spelt
as well as any other; words are cut to the vocabulary only where they are predicted.
"""

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Integer, UInt16
from ml_collections import ConfigDict

from data.tokenizers import JsonTokenizer, Tokenizer
from data.windows import Batch
from errors import UserError

BEGIN_SENTENCE, END_SENTENCE, BEGIN_WORD, END_WORD, FILL = range(256, 261)
Fields = Mapping[str, Any] | ConfigDict  # `model` of a config

# The roles of special tokens that are spelt with one mark.
MARKS = MappingProxyType({"cls": BEGIN_SENTENCE, "sep": END_SENTENCE})
PREDICTED = ("targets", "previous_targets", "lm_targets")


def spelt(words: list[str], size: int) -> UInt16[np.ndarray, "N size"]:
    """The characters of each word; one that is longer loses its end."""
    found = np.full((len(words), size), FILL, np.uint16)
    found[:, 0] = BEGIN_WORD
    for row, word in zip(found, words, strict=True):
        code = word.encode("utf-8", "ignore")[: size - 2]
        row[1 : len(code) + 1] = np.frombuffer(code, np.uint8)
        row[len(code) + 1] = END_WORD
    return found


class OpenWords(JsonTokenizer):
    """A vocabulary of words that stays open: a new one gets the next id, for as long as
    this process lives, so that whatever reads its characters knows it.

    `pieces` grows; `vocab_size` stays that of the file.
    """

    def __init__(
        self, serialized: str, roles: Mapping[str, str | None], max_characters: int
    ):
        super().__init__(serialized, roles)
        self.max_characters = max_characters
        self.ids = {piece: index for index, piece in enumerate(self.pieces)}
        self.table = spelt(self.pieces, max_characters)
        for role, mark in MARKS.items():
            if role in self.special_ids:
                self.table[self.special_ids[role], 1:4] = [mark, END_WORD, FILL]
                self.table[self.special_ids[role], 4:] = FILL

    def __reduce__(self):
        return OpenWords, (self.serialized, self.roles, self.max_characters)

    @property
    def starts_word(self) -> Bool[np.ndarray, " V"]:
        return np.ones(len(self.pieces), bool)

    def characters(
        self, ids: Integer[np.ndarray, "*shape"]
    ) -> UInt16[np.ndarray, "*shape C"]:
        """Of words by their ids."""
        if len(self.table) < len(self.pieces):
            new = spelt(self.pieces[len(self.table) :], self.max_characters)
            self.table = np.concatenate([self.table, new])
        return self.table[ids]

    def encode_batch(self, texts: list[str]) -> list[Int[np.ndarray, " _"]]:
        return [ids for ids, _ in self.encode_batch_offsets(texts)]

    def encode_batch_offsets(
        self, texts: list[str]
    ) -> list[tuple[Int[np.ndarray, " N"], Int[np.ndarray, "N 2"]]]:
        unknown, found = self.special_ids["unk"], super().encode_batch_offsets(texts)
        for text, (ids, offsets) in zip(texts, found, strict=True):
            for place in np.flatnonzero(ids == unknown).tolist():
                begin, end = offsets[place].tolist()
                ids[place] = self._id(text[begin:end])
        return found

    def _id(self, text: str) -> int:
        normalizer = self.library.normalizer
        word = normalizer.normalize_str(text) if normalizer else text
        if word not in self.ids:
            self.ids[word] = len(self.pieces)
            self.pieces.append(word)
        return self.ids[word]

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        return " ".join(self.pieces[int(index)] for index in ids)


def opened(
    tokenizer: Tokenizer,
    inputs: tuple[str, ...],
    fields: Fields,
) -> Tokenizer:
    """The tokenizer for a model of a config's `model`: open where `inputs`, the arrays
    that it reads, are characters.

    Raises:
        UserError: the tokenizer cuts words to pieces, whose characters it has not.
    """
    if "characters" not in inputs or isinstance(tokenizer, OpenWords):
        return tokenizer
    is_words = isinstance(tokenizer, JsonTokenizer) and (
        json.loads(tokenizer.serialized)["model"]["type"] == "WordLevel"
        and "unk" in tokenizer.special_ids
    )
    if not is_words:
        raise UserError(
            f"model.family={fields['family']!r} reads the characters of whole words, "
            "and this tokenizer makes pieces of them: set data.tokenizer.algorithm="
            "words, or symbols for text that is apart by spaces"
        )
    return OpenWords(tokenizer.serialized, tokenizer.roles, fields["max_characters"])


def reader(
    tokenizer: Tokenizer,
    inputs: tuple[str, ...],
    fields: Fields,
) -> Callable[[Batch], Batch]:
    """What makes a batch one for a model of a config's `model`.

    Where `inputs` are characters it adds `characters [B, T, C]`, and of what is to be
    predicted makes unknown what is none of the first `vocab_size` words.
    """
    words = opened(tokenizer, inputs, fields)
    if not isinstance(words, OpenWords):
        return lambda batch: batch
    return functools.partial(_read, words, fields["vocab_size"])


def _read(words: OpenWords, vocab_size: int, batch: Batch) -> Batch:
    unknown = words.special_ids["unk"]
    cut = {
        name: cut_to(batch[name], vocab_size, unknown)
        for name in PREDICTED
        if name in batch
    }
    return batch | cut | {"characters": words.characters(batch["tokens"])}


def cut_to(
    ids: Integer[np.ndarray, "*shape"], size: int, unknown: int
) -> Integer[np.ndarray, "*shape"]:
    """Those of the first words of a vocabulary, the others made unknown."""
    return np.where(ids < size, ids, unknown).astype(ids.dtype)
