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

Which piece has which role, such as the end of a text, is found by its spelling
(`ROLES`), in the files of transformers beside the tokenizer, or told by the user; where
spelling alone would not find the same, `special_tokens.json` beside the file says it.
"""

import collections
import difflib
import functools
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int, Integer
from tokenizers import decoders, models, normalizers, pre_tokenizers

from data import cache
from errors import UserError

BERT_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GPT_SPECIAL_TOKENS = ("<|endoftext|>", "_start_", "_delimiter_", "_classify_")
ELMO_SPECIAL_TOKENS = ("<S>", "</S>", "<UNK>")  # bilm-tf's vocabularies

# Control and format characters go, but not the joiners, which emoji, Devanagari and
# Persian are spelt with.
INVISIBLE = r"[[\p{Cc}\p{Cf}\x{FFFD}]&&[^\t\n\r\x{200C}\x{200D}]]"
ACCENTS = "[\u0300-\u036f]"
# Of the environment: what keeps an encoding to one core, of either library.
ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false"}
ROLES_FILE = "special_tokens.json"
# The spellings of each role, in order of preference; one token may have two roles.
ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>", "<UNK>"),
    "cls": ("[CLS]", "<s>", "<S>"),
    "sep": ("[SEP]", "</s>", "</S>"),
    "mask": ("[MASK]", "<mask>"),
    "end_of_text": ("<|endoftext|>", "</s>"),
    "start": ("_start_",),  # these three: GPT-1's fine-tuning code
    "delimiter": ("_delimiter_",),
    "extract": ("_classify_",),
}
TASK_ROLES = ("start", "delimiter", "extract")  # that no text of pre-training has
# tokenizer_config.json and special_tokens_map.json of transformers -> roles.
TOKEN_NAMES = {
    "pad_token": "pad",
    "unk_token": "unk",
    "cls_token": "cls",
    "sep_token": "sep",
    "mask_token": "mask",
    "eos_token": "end_of_text",
}
# tokenizer_config.json -> BertNormalizer in tokenizer.json.
NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",  # None: where it lower-cases
    "tokenize_chinese_chars": "handle_chinese_chars",
}
OF_BROUGHT = ("path", "special_tokens", "casing")  # settings
CASINGS = ("found", "cased", "uncased")  # of a vocab.txt

Roles = Mapping[str, str | None]  # role -> piece; None: no piece has it
NO_ROLES: Roles = MappingProxyType({})


class JsonTokenizer:
    """A tokenizer of the library ``tokenizers``.

    Attributes:
        serialized: the text of its ``tokenizer.json``, exactly as trained or read.
        roles: of special tokens, as far as they are not found by spelling.
        fingerprint: hex digest of both.
        vocab_size: number of ids, highest id + 1.
        pieces: the piece of each id.
        special_ids: role -> id, of the roles of `ROLES` that have a piece.
        starts_word: for each id, whether the piece begins a word. WordPiece: it does
            not begin with "##". Byte-level BPE: it begins with a space ("Ġ") or other
            white space. Metaspace: it begins with "▁". Special tokens always do.
            GPT-1's pieces say where a word ends, not where it begins, so each counts
            as a word.
    """

    def __init__(self, serialized: str, roles: Roles = NO_ROLES):
        self.serialized = serialized
        self.library = tokenizers.Tokenizer.from_str(serialized)
        self.library.encode_special_tokens = True  # "[MASK]" in raw text stays text
        self.library.no_truncation()
        self.library.no_padding()
        vocabulary = self.library.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self.pieces = [""] * self.vocab_size
        for piece, index in vocabulary.items():
            self.pieces[index] = piece
        self.special_ids, self.roles = _special_ids(vocabulary, roles)
        self.fingerprint = _fingerprint(serialized.encode(), self.roles)
        self._added = {*self.library.get_added_tokens_decoder()}

    def __reduce__(self):
        # The library's own pickle forgets encode_special_tokens.
        return JsonTokenizer, (self.serialized, self.roles)

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
        _save_roles(path, self.roles)
        return path


class SentencePieceTokenizer:
    """A tokenizer of the library ``sentencepiece``; attributes as of `JsonTokenizer`.

    A piece begins a word when it begins with "▁", SentencePiece's space; in scripts
    that are written without spaces a whole phrase is one word. `serialized` is the
    model file.
    """

    def __init__(self, serialized: bytes, roles: Roles = NO_ROLES):
        import sentencepiece  # only where it is the tokenizer

        self.serialized = serialized
        self.library = sentencepiece.SentencePieceProcessor(model_proto=serialized)
        self.vocab_size = len(self.library)
        self.pieces = [self.library.id_to_piece(i) for i in range(self.vocab_size)]
        special = {
            piece: index
            for index, piece in enumerate(self.pieces)
            if self._is_special(index)
        }
        self.special_ids, self.roles = _special_ids(special, roles)
        self.fingerprint = _fingerprint(serialized, self.roles)

    def __reduce__(self):
        return SentencePieceTokenizer, (self.serialized, self.roles)

    @functools.cached_property
    def starts_word(self) -> Bool[np.ndarray, " V"]:
        return np.array(
            [
                piece.startswith("▁") or self._is_special(index)
                for index, piece in enumerate(self.pieces)
            ]
        )

    def is_special(self, piece: str) -> bool:
        return self._is_special(self.library.piece_to_id(piece))

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
        _save_roles(path, self.roles)
        return path


Tokenizer = JsonTokenizer | SentencePieceTokenizer


def case_note(tokenizer: Tokenizer) -> str:
    upper, lower = (ids.tolist() for ids in tokenizer.encode_batch(["A", "a"]))
    return f"upper and lower case are {'one' if upper == lower else 'two'}"


# Of the pieces of a text: above the one it is told, above the other nothing can be
# learnt from it, since most of what is read and predicted is the same piece.
UNKNOWN_SHARE, UNKNOWN_LIMIT = 0.01, 0.5
FITTING = (
    "data.tokenizer.algorithm=byte_bpe, sentencepiece_unigram or characters knows "
    "every text that it is learnt from, also one without spaces"
)


def count_pieces(
    tokenizer: Tokenizer, ids: Integer[np.ndarray, " N"]
) -> tuple[int, int]:
    """(unknown, all) of the pieces of a text among ids: special tokens are none."""
    special = tokenizer.special_ids
    framing = [index for role, index in special.items() if role != "unk"]
    unknown = np.count_nonzero(ids == special.get("unk", -1))
    return int(unknown), len(ids) - int(np.isin(ids, framing).sum())


def _special_ids(
    vocabulary: dict[str, int], roles: Roles
) -> tuple[dict[str, int], dict[str, str | None]]:
    """role -> id, and of the given roles those that spelling alone does not find."""
    found: dict[str, str | None] = {}
    for role, spellings in ROLES.items():
        for spelling in reversed(spellings):
            if spelling in vocabulary:
                found[role] = spelling
    # A role without a piece is kept where it was told: whoever needs it may ask.
    own = {role: piece for role, piece in roles.items() if found.get(role, "") != piece}
    pieces = {role: piece for role, piece in (found | own).items() if piece is not None}
    return {role: vocabulary[piece] for role, piece in pieces.items()}, own


def _fingerprint(serialized: bytes, roles: Roles) -> str:
    told = json.dumps(dict(sorted(roles.items()))) if roles else ""
    return cache.digest(serialized + told.encode())


def _save_roles(path: Path, roles: Roles) -> None:
    if roles:
        text = json.dumps(roles, indent=2, ensure_ascii=False)
        cache.write_whole(path.with_name(ROLES_FILE), f"{text}\n".encode())


def parse_roles(text: str) -> dict[str, str | None]:
    """{"end_of_text": "<eot>", "mask": None} of "end_of_text=<eot> mask=".

    Raises:
        UserError: a word that is no such pair, or a role that there is not.
    """
    roles: dict[str, str | None] = {}
    for word in text.split():
        role, is_pair, piece = word.partition("=")
        if not is_pair or role not in ROLES:
            near = difflib.get_close_matches(role, ROLES, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise UserError(
                f"data.tokenizer.special_tokens={text!r}: {word!r} is no ROLE=PIECE "
                f"(ROLE= for none) with one of the roles {', '.join(ROLES)}{hint}"
            )
        roles[role] = piece or None
    return roles


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


def load(path: str, roles: Roles = NO_ROLES, casing: str = "found") -> Tokenizer:
    """Reads a tokenizer, trained here or brought.

    What transformers writes beside it counts as there: `tokenizer_config.json` (special
    tokens, added tokens, a space before a text, BERT's rules) and, unless that lists
    the added tokens, `special_tokens_map.json` and `added_tokens.json`.

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
        roles: of special tokens, before what is found.
        casing: of a ``vocab.txt``, one of `CASINGS`, before what is found.

    Raises:
        UserError: nothing there, or not what the name says; a role's piece that is
            none, or added tokens with other ids than there.
    """
    found = _tokenizer_file(Path(path).expanduser())
    if casing != "found" and found.suffix != ".txt":
        raise UserError(
            f"data.tokenizer.casing={casing!r} is for a vocab.txt: {found} says itself "
            "how it treats case; write 'found'"
        )
    config = _read_beside(found, "tokenizer_config.json")
    added, stated = config.get("added_tokens_decoder"), config
    if not isinstance(added, dict):
        stated = config | _read_beside(found, "special_tokens_map.json")
        ids = _read_beside(found, "added_tokens.json")
        special = {*map(_content, stated.values())}
        special |= {*map(_content, stated.get("additional_special_tokens") or ())}
        added = {
            index: {"content": piece, "special": piece in special}
            for piece, index in ids.items()
        }
    tokenizer = _read(found, casing)
    if isinstance(tokenizer, JsonTokenizer):
        tokenizer = _with_rules(tokenizer, config, casing)
    told = {
        role: _content(stated[name])
        for name, role in TOKEN_NAMES.items()
        if stated.get(name)
    }
    if told.get("unk") == told.get("end_of_text"):  # GPT-2's: nothing is unknown to it
        told.pop("unk", None)
    tokenizer = with_added(found, tokenizer, added)
    there = {*tokenizer.pieces}
    told = {role: piece for role, piece in told.items() if piece in there}
    own = told | _read_beside(found, ROLES_FILE) | roles
    return with_roles(found, tokenizer, own)


def _read(found: Path, casing: str) -> Tokenizer:
    """What a file and those that belong to it say."""
    try:
        if found.suffix == ".model":
            return _load_sentencepiece(found)
        text = found.read_text(encoding="utf-8")
        if found.suffix == ".txt":
            return _load_vocab_txt(found, text, casing)
        content = json.loads(text)
    except UnicodeDecodeError as error:
        raise UserError(f"tokenizer {found} is not UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"tokenizer {found} is not JSON: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        return JsonTokenizer(text)
    if found.name == "encoder_bpe_40000.json":
        return _load_gpt1(found, content, "vocab_40000.bpe")
    if found.name == "vocab.json":
        if any(piece.endswith("</w>") for piece in content):  # as Hugging Face has it
            return _load_gpt1(found, content, "merges.txt")
        return _load_gpt2(found, content)
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


def _load_vocab_txt(path: Path, text: str, casing: str) -> JsonTokenizer:
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
    lowercase = casing == "uncased"
    if casing == "found":
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


def _read_beside(path: Path, name: str) -> dict[str, Any]:
    """The object of a JSON file beside another; {} where there is none."""
    file = path.with_name(name)
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"tokenizer {file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"tokenizer {file} is no JSON object: correct or remove it")
    return content


def _content(token: Any) -> str | None:
    """The piece of a token of transformers, which may be described, or no token."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _with_rules(
    tokenizer: JsonTokenizer, config: Mapping[str, Any], casing: str
) -> JsonTokenizer:
    """Rules of a `tokenizer_config.json`: a byte-level one sets a space before a text
    or does not (RoBERTa's and BART's do), BERT's lower-cases or does not."""
    content = json.loads(tokenizer.serialized)
    first = content["pre_tokenizer"] or {"type": None}
    if first["type"] == "ByteLevel" and "add_prefix_space" in config:
        first["add_prefix_space"] = config["add_prefix_space"]
    rules = content["normalizer"] or {"type": None}
    is_told = casing == "found" and "do_lower_case" in config
    if rules["type"] == "BertNormalizer" and is_told:
        given = {"strip_accents": None} | config
        rules |= {NORMALIZER[key]: given[key] for key in NORMALIZER if key in given}
    if content == json.loads(tokenizer.serialized):
        return tokenizer
    return JsonTokenizer(json.dumps(content, ensure_ascii=False), tokenizer.roles)


def with_added(path: Path, tokenizer: Tokenizer, added: Mapping[Any, Any]) -> Tokenizer:
    """The tokenizer with tokens that were added to it, by id.

    Raises:
        UserError: a token that has, or would get, another id.
    """
    try:
        tokens = sorted((int(index), token) for index, token in added.items())
        pieces = [token["content"] for _, token in tokens]
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"tokenizer {path}: the added tokens are damaged") from error
    known = {piece: index for index, piece in enumerate(tokenizer.pieces)}
    for (index, _), piece in zip(tokens, pieces, strict=True):
        if known.setdefault(piece, len(known)) != index:
            raise UserError(
                f"tokenizer {path}: the files beside it say that {piece!r} has the id "
                f"{index}, but it is {known[piece]} there: bring a consistent set, or "
                "the file alone in another folder"
            )
    flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
    there = {*tokenizer.pieces}
    if isinstance(tokenizer, SentencePieceTokenizer):
        kinds = {token["content"]: bool(token.get("special")) for _, token in tokens}
        new = {piece: kind for piece, kind in kinds.items() if piece not in there}
        return _with_types(tokenizer, new) if new else tokenizer
    library = tokenizers.Tokenizer.from_str(tokenizer.serialized)
    found = {token.content for token in library.get_added_tokens_decoder().values()}
    new = [
        token
        for _, token in tokens
        if token["content"] not in (found if not token.get("special") else there)
    ]
    if not new:
        return tokenizer
    for token in new:
        own = {flag: token[flag] for flag in flags if flag in token}
        library.add_tokens([tokenizers.AddedToken(token["content"], **own)])
    return JsonTokenizer(library.to_str(), tokenizer.roles)


def with_roles(path: Path, tokenizer: Tokenizer, roles: Roles) -> Tokenizer:
    """The tokenizer with pieces in their roles, which no raw text becomes.

    Raises:
        UserError: a piece that it does not have.
    """
    if not roles:
        return tokenizer
    pieces = {piece: None for piece in roles.values() if piece is not None}
    for piece in pieces:
        if piece not in tokenizer.pieces:
            near = difflib.get_close_matches(piece, tokenizer.pieces, n=1, cutoff=0.5)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise UserError(f"tokenizer {path} has no piece {piece!r}{hint}")
    if isinstance(tokenizer, SentencePieceTokenizer):
        plain = [piece for piece in pieces if not tokenizer.is_special(piece)]
        serialized = tokenizer.serialized
        if plain:
            serialized = _with_types(tokenizer, dict.fromkeys(plain, True)).serialized
        return SentencePieceTokenizer(serialized, roles)
    library = tokenizers.Tokenizer.from_str(tokenizer.serialized)
    added = library.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special}
    if plain := [piece for piece in pieces if piece not in special]:
        library.add_special_tokens(plain)
        return JsonTokenizer(library.to_str(), roles)
    return JsonTokenizer(tokenizer.serialized, roles)


def _with_types(
    tokenizer: SentencePieceTokenizer, pieces: Mapping[str, bool]
) -> SentencePieceTokenizer:
    """With pieces, new at the end, that are special, or else found in raw text."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.serialized)
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    there = {piece.piece: piece for piece in proto.pieces}
    for text, is_special in pieces.items():
        piece = there[text] if text in there else proto.pieces.add(piece=text, score=0)
        piece.type = kinds.CONTROL if is_special else kinds.USER_DEFINED
    serialized = proto.SerializeToString(deterministic=True)
    return SentencePieceTokenizer(serialized, tokenizer.roles)


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
