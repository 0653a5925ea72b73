"""Tokenizers: trained here or brought, each kept in one self-contained file.

Two libraries stand behind two classes with the same methods: `JsonTokenizer` (library
``tokenizers``, file ``tokenizer.json``) and `SentencePieceTokenizer` (library
``sentencepiece``, file ``tokenizer.model``). The file holds everything, also how text
is normalised, so the same file gives the same ids anywhere.

Normalisation of one trained here (`tokenizer_training`) is three separate settings:

- ``lowercase``
- ``strip_accents``: takes away the combining diacritical marks U+0300 to U+036F, which
  are those of the Latin, Greek and Cyrillic scripts. The vowel signs of Devanagari, the
  voicing marks of Japanese and the vowel points of Arabic are letters or sounds rather
  than accents, and stay. What was taken apart on the way is composed again (NFC), so
  Hangul keeps its syllables.
- ``unicode_form``: "none", "NFC" or "NFKC". (NFKC also unifies full-width letters and
  ligatures; it turns a lone Korean ㅋ into the conjoining ᄏ.) NFD and NFKD are
  refused: they would take Hangul syllables apart.

Texts are encoded without adding special tokens, and "[MASK]" in raw text stays text.
"""

import collections
import functools
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int, Integer
from tokenizers import decoders, models, normalizers, pre_tokenizers

from data import cache
from errors import UserError

BERT_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GPT_SPECIAL_TOKENS = ("<|endoftext|>", "_start_", "_delimiter_", "_classify_")

# Control and format characters go, but not the joiners, which emoji, Devanagari and
# Persian are spelt with.
INVISIBLE = r"[[\p{Cc}\p{Cf}\x{FFFD}]&&[^\t\n\r\x{200C}\x{200D}]]"
ACCENTS = "[\u0300-\u036f]"
# Of the environment: what keeps an encoding to one core, of either library.
ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false"}
# The spellings of each role, in order of preference; one token may have two roles.
ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "end_of_text": ("<|endoftext|>", "</s>"),
    "start": ("_start_",),  # these three: GPT-1's fine-tuning code
    "delimiter": ("_delimiter_",),
    "extract": ("_classify_",),
}
TASK_ROLES = ("start", "delimiter", "extract")  # that no text of pre-training has


class JsonTokenizer:
    """A tokenizer of the library ``tokenizers``.

    Attributes:
        serialized: the text of its ``tokenizer.json``, exactly as trained or read.
        fingerprint: hex digest of `serialized`.
        vocab_size: number of ids, highest id + 1.
        pieces: the piece of each id.
        special_ids: role -> id, of the roles of `ROLES` that have a token.
        starts_word: for each id, whether the piece begins a word. WordPiece: it does
            not begin with "##". Byte-level BPE: it begins with a space ("Ġ") or other
            white space. Metaspace: it begins with "▁". Special tokens always do.
            GPT-1's pieces say where a word ends, not where it begins, so each counts
            as a word.
    """

    def __init__(self, serialized: str):
        self.serialized = serialized
        self.library = tokenizers.Tokenizer.from_str(serialized)
        self.library.encode_special_tokens = True  # "[MASK]" in raw text stays text
        self.library.no_truncation()
        self.library.no_padding()
        self.fingerprint = cache.digest(serialized.encode())
        vocabulary = self.library.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self.pieces = [""] * self.vocab_size
        for piece, index in vocabulary.items():
            self.pieces[index] = piece
        self.special_ids = _special_ids(vocabulary)
        self._added = {*self.library.get_added_tokens_decoder()}

    def __reduce__(self):
        # The library's own pickle forgets encode_special_tokens.
        return JsonTokenizer, (self.serialized,)

    @functools.cached_property
    def starts_word(self) -> Bool[np.ndarray, " V"]:
        settings = json.loads(self.serialized)
        model, words = settings["model"], json.dumps(settings["pre_tokenizer"])
        starts = [True] * self.vocab_size
        if model["type"] == "WordPiece":
            prefix = model["continuing_subword_prefix"]
            starts = [not piece.startswith(prefix) for piece in self.pieces]
        elif '"ByteLevel"' in words:
            starts = [piece.startswith(("Ġ", "Ċ", "ĉ", "č")) for piece in self.pieces]
        elif '"Metaspace"' in words:
            starts = [piece.startswith("▁") for piece in self.pieces]
        for index in self._added | {*self.special_ids.values()}:
            starts[index] = True
        return np.array(starts)

    def encode_batch(self, texts: list[str]) -> list[Int[np.ndarray, " _"]]:
        """The int32 ids of each text; no special tokens are added."""
        encodings = self.library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def encode_batch_offsets(
        self, texts: list[str]
    ) -> list[tuple[Int[np.ndarray, " N"], Int[np.ndarray, "N 2"]]]:
        """As `encode_batch`, each with the characters its pieces begin and end at.

        White space that a piece stands for is part of it. Where pieces share one
        character, either all span it or all but the last span nothing.
        """
        encodings = self.library.encode_batch(texts, add_special_tokens=False)
        return [
            (np.array(e.ids, np.int32), np.array(e.offsets, np.int32).reshape(-1, 2))
            for e in encodings
        ]

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """Readable text; special tokens show as they are written."""
        return self.library.decode([int(i) for i in ids], skip_special_tokens=False)

    def save(self, folder: Path) -> Path:
        path = Path(folder) / "tokenizer.json"
        cache.write_whole(path, self.serialized.encode())
        return path


class SentencePieceTokenizer:
    """A tokenizer of the library ``sentencepiece``; attributes as of `JsonTokenizer`.

    A piece begins a word when it begins with "▁", SentencePiece's space; in scripts
    that are written without spaces a whole phrase is one word. `serialized` is the
    model file.
    """

    def __init__(self, serialized: bytes):
        import sentencepiece  # only where it is the tokenizer

        self.serialized = serialized
        self.library = sentencepiece.SentencePieceProcessor(model_proto=serialized)
        self.fingerprint = cache.digest(serialized)
        self.vocab_size = len(self.library)
        self.pieces = [self.library.id_to_piece(i) for i in range(self.vocab_size)]
        self.special_ids = _special_ids(
            {
                piece: index
                for index, piece in enumerate(self.pieces)
                if self.library.is_control(index) or self.library.is_unknown(index)
            }
        )

    def __reduce__(self):
        return SentencePieceTokenizer, (self.serialized,)

    @functools.cached_property
    def starts_word(self) -> Bool[np.ndarray, " V"]:
        return np.array(
            [
                piece.startswith("▁") or self._is_special(index)
                for index, piece in enumerate(self.pieces)
            ]
        )

    def _is_special(self, index: int) -> bool:
        return self.library.is_control(index) or self.library.is_unknown(index)

    def encode_batch(self, texts: list[str]) -> list[Int[np.ndarray, " _"]]:
        """The int32 ids of each text; no special tokens are added."""
        alone = os.environ.items() >= ONE_THREAD.items()
        batch = self.library.encode(texts, num_threads=1 if alone else os.cpu_count())
        return [np.array(ids, np.int32) for ids in batch]

    def encode_batch_offsets(
        self, texts: list[str]
    ) -> list[tuple[Int[np.ndarray, " N"], Int[np.ndarray, "N 2"]]]:
        """As `encode_batch`, each with the characters its pieces begin and end at."""
        from sentencepiece import sentencepiece_pb2

        encoded = []
        # Of the forms with offsets the one that all versions have; it counts bytes.
        for text, proto in zip(
            texts, self.library.encode(texts, out_type="serialized_proto"), strict=True
        ):
            pieces = sentencepiece_pb2.SentencePieceText.FromString(proto).pieces
            utf8 = np.frombuffer(text.encode(), np.uint8)
            characters = np.cumsum((utf8 & 0xC0) != 0x80)  # up to and with each byte
            characters = np.concatenate([[0], characters]).astype(np.int32)
            spans = np.array([(p.begin, p.end) for p in pieces], int).reshape(-1, 2)
            ids = np.array([p.id for p in pieces], np.int32)
            encoded.append((ids, characters[spans]))
        return encoded

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """Readable text; special tokens show as they are written."""
        parts = []
        runs = itertools.groupby(map(int, ids), key=self._is_special)
        for special, run in runs:
            if special:
                parts += [self.pieces[index] for index in run]
            else:
                parts.append(self.library.decode(list(run)))
        return " ".join(parts)

    def save(self, folder: Path) -> Path:
        path = Path(folder) / "tokenizer.model"
        cache.write_whole(path, self.serialized)
        return path


Tokenizer = JsonTokenizer | SentencePieceTokenizer


UNKNOWN_SHARE = 0.01  # of pieces, above which it is told


def count_unknown(tokenizer: Tokenizer, ids: Integer[np.ndarray, " N"]) -> int:
    """How many of the ids are the unknown piece; none where there is no such."""
    return int(np.count_nonzero(ids == tokenizer.special_ids.get("unk", -1)))


def _special_ids(vocabulary: dict[str, int]) -> dict[str, int]:
    found = {}
    for role, spellings in ROLES.items():
        for spelling in reversed(spellings):
            if spelling in vocabulary:
                found[role] = vocabulary[spelling]
    return found


# Kinds of tokenizers


def wordpiece(
    vocabulary: dict[str, int],
    normalizer: normalizers.Normalizer,
    special_tokens: Iterable[str],
) -> JsonTokenizer:
    """Greedy longest match with "##" inside words (BERT, tokenization.py)."""
    # A word of over 100 characters is unknown: BERT's limit at its release, which the
    # published vocabularies were used with.
    model = models.WordPiece(
        vocabulary, unk_token="[UNK]", max_input_chars_per_word=100
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The library's own clean-up would also turn "do not" into "don't".
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),
            *(decoders.Replace(f" {mark}", mark) for mark in ".,!?;:)]"),
        ]
    )
    tokenizer.add_special_tokens(list(special_tokens))
    return JsonTokenizer(tokenizer.to_str())


def byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """GPT-2's splitting and spelling (encoder.py)."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


# Loading


def load(path: str) -> Tokenizer:
    """Reads a tokenizer, trained here or brought.

    Args:
        path: a file, or a folder that holds one (looked for in this order):

            - ``tokenizer.json`` (or another ``.json`` of the library ``tokenizers``);
            - ``tokenizer.model`` (or another ``.model`` of SentencePiece);
            - GPT-1's ``encoder_bpe_40000.json`` and ``vocab_40000.bpe``;
            - ``vocab.json`` and ``merges.txt``, GPT-2's, or GPT-1's if pieces end in
              "</w>";
            - BERT's ``vocab.txt`` (or another ``.txt``), one piece a line, with BERT's
              own rules. It counts as cased if a piece that is no special token (``[X]``
              or ``<x>``) has an upper-case letter. Uncased
              means lower-casing, and stripping accents (BERT, tokenization.py) unless
              the vocabulary itself has letters with accents or whole Hangul syllables,
              which stripping would make unreachable.

    Raises:
        UserError: nothing there, or not what the name says.
    """
    found = _tokenizer_file(Path(path).expanduser())
    try:
        if found.suffix == ".model":
            return _load_sentencepiece(found)
        text = found.read_text(encoding="utf-8")
        if found.suffix == ".txt":
            return _load_vocab_txt(found, text)
        content = json.loads(text)
    except UnicodeDecodeError as error:
        raise UserError(f"tokenizer {found} is not UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"tokenizer {found} is not JSON: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        return _with_prefix_space(found, JsonTokenizer(text))
    if found.name == "encoder_bpe_40000.json":
        return _load_gpt1(found, content, "vocab_40000.bpe")
    if found.name == "vocab.json":
        if any(piece.endswith("</w>") for piece in content):  # as Hugging Face has it
            return _load_gpt1(found, content, "merges.txt")
        return _with_prefix_space(found, _load_gpt2(found, content))
    raise UserError(
        f"tokenizer {found} is JSON, but neither a tokenizer.json nor named as the "
        "vocabulary of GPT-1 (encoder_bpe_40000.json) or GPT-2 (vocab.json)"
    )


def _tokenizer_file(path: Path) -> Path:
    names = ("tokenizer.json", "tokenizer.model", "encoder_bpe_40000.json")
    names = (*names, "vocab.json", "vocab.txt")
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise UserError(f"tokenizer folder {path} holds none of {', '.join(names)}")
    beside = {"vocab_40000.bpe": "encoder_bpe_40000.json", "merges.txt": "vocab.json"}
    if path.name in beside:
        path = path.with_name(beside[path.name])
    if not path.is_file():
        raise UserError(f"tokenizer {path}: no such file or folder")
    if path.suffix not in (".json", ".model", ".txt"):
        raise UserError(
            f"tokenizer {path}: the suffix must be .json, .model or .txt, "
            "or the path a folder"
        )
    return path


def _load_sentencepiece(path: Path) -> SentencePieceTokenizer:
    try:
        return SentencePieceTokenizer(path.read_bytes())
    except RuntimeError as error:
        raise UserError(f"tokenizer {path} is no SentencePiece model") from error


def _load_vocab_txt(path: Path, text: str) -> JsonTokenizer:
    # A piece may be a line separator (U+2028) or a no-break space.
    lines = text.removeprefix("\ufeff").split("\n")
    pieces = [line.strip(" \r") for line in lines]
    while pieces and not pieces[-1]:
        pieces.pop()
    if any("\t" in piece or piece.startswith("▁") for piece in pieces):
        raise UserError(
            f"tokenizer {path} is a SentencePiece vocabulary, not a WordPiece one; "
            "name the .model file that came with it"
        )
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    if len(vocabulary) < len(pieces):
        piece, count = collections.Counter(pieces).most_common(1)[0]
        raise UserError(
            f"tokenizer {path} has {piece!r} {count} times; every line must differ"
        )
    if "[UNK]" not in vocabulary:
        raise UserError(
            f"tokenizer {path} has no line '[UNK]'; "
            "a WordPiece vocabulary needs a piece for unknown words"
        )
    words = [piece for piece in pieces if not re.fullmatch(r"\[.*\]|<.*>", piece)]
    lowercase = all(word == word.lower() for word in words)
    normalizer = normalizers.BertNormalizer(
        lowercase=lowercase,
        strip_accents=lowercase and not any(map(_has_accent, words)),
    )
    special = [token for token in BERT_SPECIAL_TOKENS if token in vocabulary]
    return wordpiece(vocabulary, normalizer, special)


def _has_accent(word: str) -> bool:
    """Whether a word has what accent stripping takes from Latin, Greek and Cyrillic
    letters, or Hangul syllables, which it takes apart.

    Marks of other scripts say nothing: a vocabulary learnt with stripping may hold the
    letters that have them."""
    apart = unicodedata.normalize("NFD", word)
    return any("가" <= mark <= "힣" for mark in word) or any(
        "\u0300" <= mark <= "\u036f" for mark in apart
    )


def _with_prefix_space(path: Path, tokenizer: JsonTokenizer) -> JsonTokenizer:
    """A byte-level one that sets a space before a text, or does not, as the
    `tokenizer_config.json` beside it says (RoBERTa's and BART's do)."""
    config = path.with_name("tokenizer_config.json")
    if not config.is_file():
        return tokenizer
    try:
        asked = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"tokenizer {config} is not JSON: {error}") from error
    content = json.loads(tokenizer.serialized)
    first = content["pre_tokenizer"] or {"type": None}
    if first["type"] != "ByteLevel" or not isinstance(asked, dict):
        return tokenizer
    wanted = asked.get("add_prefix_space", first["add_prefix_space"])
    if wanted == first["add_prefix_space"]:
        return tokenizer
    first["add_prefix_space"] = wanted
    return JsonTokenizer(json.dumps(content, ensure_ascii=False))


def _merges(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise UserError(f"tokenizer: {path} is missing; it belongs to the vocabulary")
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines[0].startswith("#version"):
        lines = lines[1:]
    merges = []
    for line in filter(None, (line.rstrip("\r") for line in lines)):
        left, _, right = line.partition(" ")
        if not right or " " in right:
            raise UserError(f"tokenizer {path}: {line!r} is not a pair of pieces")
        merges.append((left, right))
    return merges


def _bpe(
    path: Path, vocabulary: Any, merges: list[tuple[str, str]], **settings: str
) -> models.BPE:
    if not isinstance(vocabulary, dict):
        raise UserError(f"tokenizer {path} does not map pieces to ids")
    for left, right in merges:
        for piece in (left, right, left + right):
            if piece not in vocabulary:
                raise UserError(
                    f"tokenizer {path} lacks {piece!r}, which the merge "
                    f"'{left} {right}' needs; the two files do not belong together"
                )
    return models.BPE(vocabulary, merges, **settings)


def _load_gpt1(path: Path, vocabulary: Any, merges_name: str) -> JsonTokenizer:
    """GPT-1's BPE, words ending in "</w>" (finetune-transformer-lm, text_utils.py).

    Text is split by BERT's lower-casing rules, as Hugging Face does; the release used
    spaCy and ftfy, which differ on contractions such as "n't".
    """
    merges = _merges(path.with_name(merges_name))
    tokenizer = tokenizers.Tokenizer(
        _bpe(path, vocabulary, merges, unk_token="<unk>", end_of_word_suffix="</w>")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    special = ("<unk>", *GPT_SPECIAL_TOKENS)
    tokenizer.add_special_tokens([token for token in special if token in vocabulary])
    return JsonTokenizer(tokenizer.to_str())


def _load_gpt2(path: Path, vocabulary: Any) -> JsonTokenizer:
    """GPT-2's byte-level BPE (gpt-2, encoder.py); nothing is unknown to it."""
    merges = _merges(path.with_name("merges.txt"))
    tokenizer = byte_level(_bpe(path, vocabulary, merges))
    tokenizer.add_special_tokens([t for t in GPT_SPECIAL_TOKENS if t in vocabulary])
    return JsonTokenizer(tokenizer.to_str())
