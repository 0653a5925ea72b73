"""Tokenizers: trained here or brought, each kept in one self-contained file.

Two libraries stand behind two classes with the same methods: `JsonTokenizer` (library
``tokenizers``, file ``tokenizer.json``) and `SentencePieceTokenizer` (library
``sentencepiece``, file ``tokenizer.model``). The file holds everything, also how text
is normalised, so the same file gives the same ids anywhere.

Normalisation of a tokenizer trained here is three separate settings:

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

import array
import collections
import functools
import hashlib
import io
import itertools
import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from errors import UserError

ALGORITHMS = ("wordpiece", "byte_bpe", "sentencepiece_unigram", "sentencepiece_bpe")
UNICODE_FORMS = ("none", "NFC", "NFKC")
BERT_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GPT_SPECIAL_TOKENS = ("<|endoftext|>", "_start_", "_delimiter_", "_classify_")

# What cuts a text into parts whose ids, one part after the other, are those of the
# text, for the two common ways to split it into words: where the splitting parts words
# whatever stands around, and where no Unicode form joins characters.
_ASCII_NEXT = r"(?![^\ -~\n])"  # or the end of the text; no combining mark at least
# White space goes, punctuation marks stand alone (BERT, tokenization.py). Not among
# them: < = >, which together with U+0338 are no punctuation.
_MARK = r"!-/:;?@\[-`{-~"
_BERT_PARTS = re.compile(
    rf"""[0-9A-Za-z]++(?![^\ \n{_MARK}]) | [{_MARK}]{_ASCII_NEXT}
    | (?: [^\ \n{_MARK}]++ | [{_MARK}](?!{_ASCII_NEXT}) )+""",
    re.VERBOSE,
)
# White space, here as Unicode has it, belongs to what follows (gpt-2, encoder.py).
_W = r"\t-\r\ \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_GPT2_PARTS = re.compile(
    rf"""'(?:[stmd]|re|ve|ll) | \ ?[A-Za-z]++{_ASCII_NEXT} | \ ?[0-9]++{_ASCII_NEXT}
    | \ ?[!-/:-@\[-`{{-~]++{_ASCII_NEXT} | [{_W}]*[^{_W}]+ | [{_W}]+""",
    re.VERBOSE,
)
# Control and format characters go, but not the joiners, which emoji, Devanagari and
# Persian are spelt with.
_INVISIBLE = r"[[\p{Cc}\p{Cf}\x{FFFD}]&&[^\t\n\r\x{200C}\x{200D}]]"
_ACCENTS = "[\u0300-\u036f]"
# What is remembered of the parts already encoded: their characters and as many bytes
# again for each, in all about four times as much memory.
REMEMBERED_CHARACTERS = 1 << 25
PART_OVERHEAD = 32

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
        self.fingerprint = _digest(serialized.encode())
        vocabulary = self.library.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self.pieces = [""] * self.vocab_size
        for piece, index in vocabulary.items():
            self.pieces[index] = piece
        self.special_ids = _special_ids(vocabulary)
        self._added = {*self.library.get_added_tokens_decoder()}
        self._parts = _parts_pattern(json.loads(serialized))
        self._ids_of_part: dict[str, bytes] = {}
        self._remembered = 0

    def __reduce__(self):
        # The library's own pickle forgets encode_special_tokens.
        return _unpickled, (self.serialized,)

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
        if self._parts is None:
            encodings = self.library.encode_batch_fast(texts, add_special_tokens=False)
            return [np.array(encoding.ids, np.int32) for encoding in encodings]
        parts: list[str] = []
        ends = [0]
        for text in texts:
            parts += self._parts.findall(text)
            ends.append(len(parts))
        ids = self._ids_of_parts(parts)
        return [
            np.frombuffer(bytearray().join(ids[start:end]), np.int32)
            for start, end in itertools.pairwise(ends)
        ]

    def _ids_of_parts(self, parts: list[str]) -> list[bytes]:
        """The int32 ids of each part, from memory: most words came before."""
        found = [*map(self._ids_of_part.get, parts)]
        missing = [place for place, ids in enumerate(found) if ids is None]
        new = list({parts[place] for place in missing})
        encodings = self.library.encode_batch_fast(new, add_special_tokens=False)
        ids_of_new = {
            part: array.array("i", encoding.ids).tobytes()
            for part, encoding in zip(new, encodings, strict=True)
        }
        for place in missing:
            found[place] = ids_of_new[parts[place]]
        self._remembered += sum(map(len, new)) + PART_OVERHEAD * len(new)
        if self._remembered > REMEMBERED_CHARACTERS:
            self._ids_of_part, self._remembered = {}, 0
        self._ids_of_part.update(ids_of_new)
        return found

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
        path.write_text(self.serialized, encoding="utf-8", newline="")
        return path


@functools.lru_cache(1)
def _unpickled(serialized: str) -> JsonTokenizer:
    """Once in a process: one that gets it with each task goes on with what it knows."""
    return JsonTokenizer(serialized)


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
        self.fingerprint = _digest(serialized)
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
        """The int32 ids of each text, on all cores; no special tokens are added."""
        batch = self.library.encode(texts, num_threads=os.cpu_count())
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
        path.write_bytes(self.serialized)
        return path


Tokenizer = JsonTokenizer | SentencePieceTokenizer


def _parts_pattern(settings: dict[str, Any]) -> re.Pattern[str] | None:
    """What cuts text into parts that can be encoded apart; None where nothing may.

    Args:
        settings: the content of a ``tokenizer.json``.
    """
    if settings["model"].get("dropout") or not all(
        token["special"] for token in settings["added_tokens"]
    ):
        return None  # ids are drawn; tokens are found across words
    normalizer, words = settings["normalizer"], settings["pre_tokenizer"] or {}
    if words.get("type") == "BertPreTokenizer" and _keeps_ascii_apart(normalizer):
        return _BERT_PARTS
    is_gpt2 = words.get("type") == "ByteLevel" and not words["add_prefix_space"]
    if is_gpt2 and words.get("use_regex", True) and normalizer is None:
        return _GPT2_PARTS
    return None


def _keeps_ascii_apart(normalizer: dict[str, Any] | None) -> bool:
    """Whether no printable ASCII character goes, or turns into another one's part."""
    if normalizer is None:
        return True
    if normalizer["type"] == "Sequence":
        return all(map(_keeps_ascii_apart, normalizer["normalizers"]))
    if normalizer["type"] == "Replace":
        return normalizer["pattern"].get("Regex") in (_INVISIBLE, _ACCENTS)
    forms = ("NFC", "NFD", "NFKC", "NFKD")
    return normalizer["type"] in (*forms, "Lowercase", "BertNormalizer")


def _digest(serialized: bytes) -> str:
    return hashlib.blake2b(serialized, digest_size=16).hexdigest()


def _special_ids(vocabulary: dict[str, int]) -> dict[str, int]:
    found = {}
    for role, spellings in ROLES.items():
        for spelling in reversed(spellings):
            if spelling in vocabulary:
                found[role] = vocabulary[spelling]
    return found


# Training


def train(
    documents: Iterable[str],
    *,
    algorithm: str,
    vocab_size: int,
    lowercase: bool,
    strip_accents: bool,
    unicode_form: str,
    special_tokens: tuple[str, ...],
    sample_bytes: int,
) -> Tokenizer:
    """Learns a vocabulary from a sample of the documents; the same text, the same file.

    Args:
        documents: read once, to the end; memory holds the sample only.
        algorithm: one of `ALGORITHMS`. "byte_bpe" and the SentencePiece ones can spell
            any text (from bytes where need be), so nothing is unknown to them.
            "wordpiece" splits words at white space and punctuation as BERT does, with
            CJK ideographs standing alone, and drops control characters; a word with a
            character that the sample lacks is unknown.
        vocab_size: number of ids, specials included. A text too small to fill it gives
            a smaller vocabulary, and a printed note.
        lowercase, strip_accents, unicode_form: see the head of this file.
        special_tokens: get the first ids, in this order. SentencePiece adds "<unk>"
            after them where no token has the role of the unknown.
        sample_bytes: how much UTF-8 text to learn from at most.

    Raises:
        UserError: an unknown setting, no text, a vocabulary too small for the alphabet.
    """
    if algorithm not in ALGORITHMS:
        raise UserError(
            f"tokenizer algorithm {algorithm!r}: must be one of {', '.join(ALGORITHMS)}"
        )
    if unicode_form not in UNICODE_FORMS:
        raise UserError(
            f"tokenizer unicode_form {unicode_form!r}: must be one of "
            f"{', '.join(UNICODE_FORMS)} (NFD and NFKD take Hangul syllables apart)"
        )
    sample = _sample(documents, sample_bytes)
    if not sample:
        raise UserError(
            "the corpus holds no text to train a tokenizer on "
            f"(sample_bytes is {sample_bytes:,})"
        )
    if algorithm == "wordpiece":
        steps = _normalization_steps(lowercase, strip_accents, unicode_form)
        tokenizer = _train_wordpiece(sample, vocab_size, steps, special_tokens)
    elif algorithm == "byte_bpe":
        steps = _normalization_steps(lowercase, strip_accents, unicode_form)
        tokenizer = _train_byte_bpe(sample, vocab_size, steps, special_tokens)
    else:
        rules = _normalization_rules(lowercase, strip_accents, unicode_form)
        model_type = algorithm.removeprefix("sentencepiece_")
        tokenizer = _train_sentencepiece(
            sample, vocab_size, rules, special_tokens, model_type
        )
    assert tokenizer.vocab_size <= vocab_size, (tokenizer.vocab_size, vocab_size)
    if tokenizer.vocab_size < vocab_size:
        print(
            f"The text gives {tokenizer.vocab_size:,} pieces, fewer than the "
            f"vocab_size of {vocab_size:,} asked for; the tokenizer stays that small."
        )
    return tokenizer


def _sample(documents: Iterable[str], sample_bytes: int) -> list[str]:
    """Passages drawn evenly over all documents, within `sample_bytes`, in their order.

    A passage stays while the hash of its place and text is below a threshold, which
    halves whenever the sample overflows.
    """
    threshold = 2**64
    kept: list[tuple[int, str]] = []
    size = 0
    for place, passage in enumerate(_passages(documents)):
        text = passage.encode()
        digest = hashlib.blake2b(b"%d " % place + text, digest_size=8, person=b"sample")
        rank = int.from_bytes(digest.digest(), "big")
        if rank >= threshold:
            continue
        kept.append((rank, passage))
        size += len(text)
        while size > sample_bytes:
            threshold //= 2
            kept = [(rank, passage) for rank, passage in kept if rank < threshold]
            size = sum(len(passage.encode()) for _, passage in kept)
    return [passage for _, passage in kept]


def _passages(documents: Iterable[str], length: int = 20_000) -> Iterator[str]:
    """Documents, the long ones cut up; the few words that are cut do not matter."""
    for document in documents:
        for start in range(0, len(document), length):
            yield document[start : start + length]


def _normalization_steps(
    lowercase: bool, strip_accents: bool, unicode_form: str
) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if unicode_form != "none":
        steps.append(getattr(normalizers, unicode_form)())
    if lowercase:
        steps.append(normalizers.Lowercase())
    if strip_accents:
        accents = tokenizers.Regex(_ACCENTS)
        steps += [
            normalizers.NFD(),
            normalizers.Replace(accents, ""),
            normalizers.NFC(),
        ]
    return steps


def _normalize(
    text: str, lowercase: bool, strip_accents: bool, unicode_form: str
) -> str:
    """The three settings in plain Python."""
    if unicode_form != "none":
        text = unicodedata.normalize(unicode_form, text)
    if lowercase:
        text = text.lower()
    if strip_accents:
        text = re.sub(_ACCENTS, "", unicodedata.normalize("NFD", text))
        text = unicodedata.normalize("NFC", text)
    return text


def _train_wordpiece(
    sample: list[str],
    vocab_size: int,
    steps: list[normalizers.Normalizer],
    special_tokens: tuple[str, ...],
) -> JsonTokenizer:
    if "[UNK]" not in special_tokens:
        raise UserError(
            "a wordpiece tokenizer needs '[UNK]' among its special tokens, "
            f"which are {', '.join(special_tokens) or 'none'}; add it, or use byte_bpe"
        )
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    spaced_ideographs = normalizers.BertNormalizer(
        clean_text=False,
        handle_chinese_chars=True,
        strip_accents=False,
        lowercase=False,
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(tokenizers.Regex(_INVISIBLE), ""),
            *steps,
            spaced_ideographs,
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet = _alphabet(sample, tokenizer, (vocab_size - len(special_tokens)) // 2)
    singles = [piece for piece in alphabet if not piece.startswith("##")]
    seeds = [
        *special_tokens,
        *(piece for piece in alphabet if piece not in special_tokens),
    ]
    # Seeds that the trainer takes for special tokens have fixed ids. Left to itself it
    # numbers the ##characters in the order of a hash table, and ties between merges
    # fall differently in every process.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=seeds,
        initial_alphabet=[piece for piece in singles if len(piece) == 1],
        limit_alphabet=len(singles),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return _wordpiece(vocabulary, tokenizer.normalizer, special_tokens)


def _alphabet(
    sample: list[str], tokenizer: tokenizers.Tokenizer, max_pieces: int
) -> list[str]:
    """The characters to spell with: "a", and "##a" where it can stand inside a word.

    The most frequent ones until 999,999 in a million can be spelt, within `max_pieces`.
    """
    counts: collections.Counter[str] = collections.Counter()
    for passage in sample:
        counts.update(unicodedata.normalize("NFC", passage))
    normalized: collections.Counter[str] = collections.Counter()
    for character, count in counts.items():
        for result in tokenizer.normalizer.normalize_str(character):
            if not result.isspace():
                normalized[result] += count
    pieces: list[str] = []
    rest = normalized.total()
    allowed = rest // 1_000_000
    for character, count in sorted(normalized.items(), key=lambda x: (-x[1], x[0])):
        spelt = [character, f"##{character}"]
        inside = tokenizer.normalizer.normalize_str(f"a{character}")
        if len(tokenizer.pre_tokenizer.pre_tokenize_str(inside)) > 1:
            spelt.pop()  # punctuation and ideographs always stand alone
        if rest <= allowed or len(pieces) + len(spelt) > max_pieces:
            break
        pieces += spelt
        rest -= count
    return sorted(pieces)


def _wordpiece(
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


def _train_byte_bpe(
    sample: list[str],
    vocab_size: int,
    steps: list[normalizers.Normalizer],
    special_tokens: tuple[str, ...],
) -> JsonTokenizer:
    smallest = 256 + len(special_tokens)
    if vocab_size < smallest:
        raise UserError(
            f"vocab_size {vocab_size} is too small for byte_bpe: 256 bytes and "
            f"{len(special_tokens)} special tokens make {smallest}"
        )
    tokenizer = _byte_level(models.BPE())
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    return JsonTokenizer(tokenizer.to_str())


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """GPT-2's splitting and spelling (encoder.py)."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _train_sentencepiece(
    sample: list[str],
    vocab_size: int,
    rules: dict[str, str],
    special_tokens: tuple[str, ...],
    model_type: str,
) -> SentencePieceTokenizer:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    ids = {token: index for index, token in enumerate(special_tokens)}
    unknown = "[UNK]" if "[UNK]" in ids else "<unk>"
    ids.setdefault(unknown, len(ids))
    # The trainer skips texts with these, so learn from what lies between.
    lines = (line for text in sample for line in re.split("[\0\t\r\n▅]+", text) if line)
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as tsv:
        for pair in rules.items():
            codes = (" ".join(f"{ord(character):X}" for character in s) for s in pair)
            tsv.write("\t".join(codes) + "\n")
        tsv.flush()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines,
                model_writer=model,
                model_type=model_type,
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                byte_fallback=True,
                character_coverage=0.9995,
                normalization_rule_name="" if rules else "identity",
                normalization_rule_tsv=tsv.name if rules else "",
                remove_extra_whitespaces=False,  # so that decoding gives the text back
                max_sentence_length=1 << 20,  # bytes; longer ones would be skipped
                unk_id=ids[unknown],
                unk_piece=unknown,
                pad_id=ids.get("[PAD]", -1),
                pad_piece="[PAD]",
                bos_id=-1,
                eos_id=-1,
                control_symbols=[t for t in ids if t not in (unknown, "[PAD]")],
                num_threads=8,  # fixed: sums over threads round by their number
                minloglevel=2,
            )
        except RuntimeError as error:
            needed = re.search(r"smaller than required_chars. \d+ vs (\d+)", str(error))
            if not needed:
                raise
            raise UserError(
                f"vocab_size {vocab_size} is too small for the text: special tokens, "
                f"256 bytes and the characters make {needed[1]}"
            ) from error
    # The name of the temporary file must not become part of the tokenizer.
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    proto.normalizer_spec.normalization_rule_tsv = ""
    tokenizer = SentencePieceTokenizer(proto.SerializeToString(deterministic=True))
    assert tokenizer.pieces[: len(ids)] == list(ids), tokenizer.pieces[: len(ids)]
    return tokenizer


def _normalization_rules(
    lowercase: bool, strip_accents: bool, unicode_form: str
) -> dict[str, str]:
    """The three settings as SentencePiece's rules: longest source first, left to right.

    Every character that changes has a rule; where something is composed, so has every
    sequence that Unicode composes into one character.
    """
    sources = [*map(chr, range(1, 0xD800)), *map(chr, range(0xE000, 0x110000))]
    sources.remove("\n")
    if strip_accents or unicode_form != "none":
        sources += _composable_sequences()
    text = _normalize("\n".join(sources), lowercase, strip_accents, unicode_form)
    targets = text.split("\n")
    return {s: t for s, t in zip(sources, targets, strict=True) if s != t}


@functools.cache
def _composable_sequences() -> list[str]:
    """All strings of several characters that NFC makes one character of."""
    sequences: set[str] = set()
    for character in map(chr, range(0xA0, 0x30000)):
        base, *marks = unicodedata.normalize("NFD", character)
        if not marks or unicodedata.normalize("NFC", character) != character:
            continue
        for order in itertools.permutations(marks):
            for count in range(len(order)):  # so many marks composed, the rest apart
                composed = unicodedata.normalize("NFC", base + "".join(order[:count]))
                spelt = composed + "".join(order[count:])
                if unicodedata.normalize("NFC", spelt) == character:
                    sequences.add(spelt)
    return sorted(sequences)


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
              own rules. It counts as cased if a piece has an upper-case letter. Uncased
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


def _load_vocab_txt(path: Path, text: str) -> JsonTokenizer:
    pieces = [line.strip() for line in text.splitlines()]
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
    words = [piece for piece in pieces if not re.fullmatch(r"\[.*\]", piece)]
    lowercase = all(word == word.lower() for word in words)
    normalizer = normalizers.BertNormalizer(
        lowercase=lowercase,
        strip_accents=lowercase and not any(map(_has_accent, words)),
    )
    special = [token for token in BERT_SPECIAL_TOKENS if token in vocabulary]
    return _wordpiece(vocabulary, normalizer, special)


def _has_accent(word: str) -> bool:
    """Whether BERT's accent stripping, NFD less the marks, would change the word."""
    apart = unicodedata.normalize("NFD", word)
    hangul = any("가" <= character <= "힣" for character in word)
    return hangul or any(unicodedata.category(character) == "Mn" for character in apart)


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
    tokenizer = _byte_level(_bpe(path, vocabulary, merges))
    tokenizer.add_special_tokens([t for t in GPT_SPECIAL_TOKENS if t in vocabulary])
    return JsonTokenizer(tokenizer.to_str())
