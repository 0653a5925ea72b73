"""Tokenizers learnt from text: the same text, the same file.

How text is normalised is three separate settings, see the head of `tokenizers`.
"""

import collections
import functools
import hashlib
import io
import itertools
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from importlib import metadata

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data.tokenizers import (
    ACCENTS,
    INVISIBLE,
    ROLES,
    JsonTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    byte_level,
    wordpiece,
)
from errors import UserError

# What is not learnt: a text's parts as they are, between spaces, with punctuation
# apart, or by characters.
COUNTED = {
    "symbols": pre_tokenizers.WhitespaceSplit(),
    "words": pre_tokenizers.BertPreTokenizer(),
    "characters": pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated"),
}
# What stands between the library's white space; Python's \s has some more.
SYMBOL = "[^\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
ALGORITHMS = (
    "wordpiece",
    "byte_bpe",
    "sentencepiece_unigram",
    "sentencepiece_bpe",
    *COUNTED,
)
UNICODE_FORMS = ("none", "NFC", "NFKC")
FORMAT_VERSION = 1  # to be raised whenever what is learnt from a text changes


def made_with() -> dict[str, int | str]:
    """What a tokenizer depends on beside the text and the settings."""
    libraries = ("tokenizers", "sentencepiece")
    versions = {name: metadata.version(name) for name in libraries}
    return {"format_version": FORMAT_VERSION} | versions


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
    also: Iterable[str] = (),
) -> Tokenizer:
    """Learns a vocabulary from a sample of the documents; the same text, the same file.

    Args:
        documents: read once, to the end; memory holds the sample only.
        algorithm: one of `ALGORITHMS`. "byte_bpe" and the SentencePiece ones can spell
            any text (from bytes where need be), so nothing is unknown to them.
            "wordpiece" splits words at white space and punctuation as BERT does, with
            CJK ideographs standing alone, and drops control characters; a word with a
            character that the sample lacks is unknown. "symbols", which stand between
            spaces (ids of items, pixels), "words", which punctuation parts as well,
            and "characters" (of molecules) are counted in all of the text; "<unk>"
            stands for the rarest where there are too many.
        vocab_size: number of ids, specials included. A text too small to fill it gives
            a smaller vocabulary, and a printed note.
        lowercase, strip_accents, unicode_form: see the head of this file.
        special_tokens: get the first ids, in this order. SentencePiece, symbols, words
            and characters add "<unk>" after them where none has that role.
        sample_bytes: how much UTF-8 text to learn from at most.
        also: text whose words get ids after all others, without being counted; read
            for "words" alone, which a model may know by their characters.

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
    steps = _normalization_steps(lowercase, strip_accents, unicode_form)
    if algorithm in COUNTED:
        more = also if algorithm == "words" else ()
        return _count(documents, more, vocab_size, steps, special_tokens, algorithm)
    sample = _sample(documents, sample_bytes)
    if not sample:
        raise UserError(
            "the corpus holds no text to train a tokenizer on "
            f"(sample_bytes is {sample_bytes:,}, and held-out documents are not "
            "read): add documents, apart by data.document_boundary"
        )
    if algorithm == "wordpiece":
        tokenizer = _train_wordpiece(sample, vocab_size, steps, special_tokens)
    elif algorithm == "byte_bpe":
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
        accents = tokenizers.Regex(ACCENTS)
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
        text = re.sub(ACCENTS, "", unicodedata.normalize("NFD", text))
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
            normalizers.Replace(tokenizers.Regex(INVISIBLE), ""),
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
    return wordpiece(vocabulary, tokenizer.normalizer, special_tokens)


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
    tokenizer = byte_level(models.BPE())
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


def _count(
    documents: Iterable[str],
    also: Iterable[str],
    vocab_size: int,
    steps: list[normalizers.Normalizer],
    special_tokens: tuple[str, ...],
    algorithm: str,
) -> JsonTokenizer:
    """A vocabulary of what stands in the text, the most frequent first."""
    named = (token for token in special_tokens if token in ROLES["unk"])
    unknown = next(named, "<unk>")
    special = [*dict.fromkeys([*special_tokens, unknown])]
    normalizer = normalizers.Sequence(steps)

    def parts(document: str) -> Iterable[str]:
        text = normalizer.normalize_str(document)
        if algorithm == "characters":
            return text
        if algorithm == "symbols":
            return re.findall(SYMBOL, text)
        return (word for word, _ in COUNTED["words"].pre_tokenize_str(text))

    counts: collections.Counter[str] = collections.Counter()
    for document in documents:
        counts.update(parts(document))
    if not counts:
        raise UserError("the corpus holds no text to take a vocabulary from")
    for document in also:
        counts.update(dict.fromkeys(parts(document), 0))
    own = sorted(counts.keys() - {*special}, key=lambda one: (-counts[one], one))
    room = vocab_size - len(special)
    if room < 1:
        raise UserError(
            f"vocab_size {vocab_size} is too small for {algorithm}: there are "
            f"{len(special)} special tokens; the text's {algorithm} make "
            f"{len(special) + len(own):,}"
        )
    print(f"the text has {len(own):,} {algorithm}", end="")
    rare = sum(counts[one] for one in own[room:])
    share = rare / counts.total()
    print(
        f"; the vocab_size of {vocab_size:,} keeps {room:,}, and {share:.2%} of the "
        f"text is unknown (all: {len(special) + len(own):,})"
        if rare
        else f", with special tokens {len(special) + len(own):,} pieces"
    )
    pieces = [*special, *own[:room]]
    model = models.WordLevel(
        {piece: index for index, piece in enumerate(pieces)}, unk_token=unknown
    )
    tokenizer = tokenizers.Tokenizer(model)
    if algorithm == "symbols":  # one that is written as a special token is none
        written = "|".join(re.escape(token) for token in special)
        alone = tokenizers.Regex(rf"(?<!\S)({written})(?!\S)")
        steps = [*steps, normalizers.Replace(alone, unknown)]
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = COUNTED[algorithm]
    if algorithm == "characters":
        tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    return JsonTokenizer(tokenizer.to_str())


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
