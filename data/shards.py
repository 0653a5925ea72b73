"""Text to token shards, and the reading of them.

One pass cuts the corpus into chunks of a fixed amount of text; `write_part` turns a
chunk into the files of one part, here or wherever `Workers` has it done, and at the end
the parts are joined. A finished folder holds, for each split ("train" and "heldout"):

    key.json                   what the shards were made of; a folder has one key
    tokenizer.json or .model   what made them of it: the folder needs nothing else
    SPLIT.tokens.npy           token ids, flat, uint16 if the vocabulary fits, else 32
    SPLIT.documents.npy        int64 [D+1], where documents begin, and the end
    SPLIT.sentences.npy        int64 [S+1], the same for sentences, if asked for
    SPLIT.unigram_counts.npy   int64 [V]
    index.json                 counts; where it exists, the folder is finished

and before it is finished, for each part k of it:

    parts/0000k.SPLIT.*.npy    tokens, documents, sentences of the part alone
    parts/0000k.json           its counts; where they exist, the part is whole
    parts/counts.json          of all parts; where they exist, no part is missing

Every file is written under a temporary name and renamed, and the parts go when all else
is there. So a process killed at any moment leaves only whole files behind, and two
processes that prepare the same folder at once write the same bytes.
"""

import collections
import functools
import hashlib
import itertools
import json
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int32, Int64, Integer
from tqdm import tqdm

from data.cache import cache_folder, digest, new_file
from data.corpora import Corpus, is_heldout
from data.tokenizers import (
    FITTING,
    UNKNOWN_LIMIT,
    UNKNOWN_SHARE,
    Tokenizer,
    count_pieces,
)
from errors import UserError

FORMAT_VERSION = 3
SPLITS = ("train", "heldout")
CHUNK_BYTES = (
    16 << 20
)  # UTF-8 text of one part; what a kill can lose, what memory holds
ENCODE_BYTES = 1 << 20  # text given to the tokenizer at once; its results are bulky
LINE_BYTES = 200  # a longer line is taken for a paragraph and cut into sentences
SENTENCE_TOKENS = 64  # a longer sentence is cut: of a pair too long the ends are lost
STALE_SECONDS = 600  # a temporary file this old belongs to a process that was killed
REMEMBERED_DOCUMENTS = 1 << 18  # hashes kept to find copies; of more a sample


@dataclass(frozen=True)
class Framing:
    """How a document lies in the token stream."""

    document_start: int | None  # id put before each document
    document_end: int | None  # id put after each document
    split_sentences: bool  # tokenize sentence by sentence, and store their offsets


@dataclass(frozen=True)
class Workers:
    """Who writes the parts; the same bytes, whoever it is.

    Attributes:
      count: how many parts are written at once.
      submit: begins `function(*arguments, **settings)`, and gives its future.
    """

    count: int
    submit: Callable[..., Future]


def here(function: Callable, *arguments: object, **settings: object) -> Future:
    future: Future = Future()
    future.set_result(function(*arguments, **settings))
    return future


THIS_PROCESS = Workers(1, here)


def key(
    corpus: Corpus, tokenizer: Tokenizer, heldout_fraction: float, framing: Framing
) -> dict:
    """Everything the contents of the shards depend on, as JSON would give it back."""
    made_of = {
        "format_version": FORMAT_VERSION,
        "chunk_bytes": CHUNK_BYTES,
        "tokenizer": tokenizer.fingerprint,
        "corpus": corpus.fingerprint(),
        "heldout_fraction": heldout_fraction,
        "framing": asdict(framing),
    }
    return json.loads(json.dumps(made_of))


def folder_for(key: dict) -> Path:
    """The folder of the cache that belongs to this key, named after the corpus."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", key["corpus"]["source"])[-40:].strip("-.")
    content = digest(json.dumps(key, sort_keys=True).encode(), size=8)
    return cache_folder() / "shards" / f"{name}-{content}"


def write_shards(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    heldout_fraction: float,
    framing: Framing,
    workers: Workers = THIS_PROCESS,
) -> None:
    """Writes the shards of a corpus; does nothing where they are finished.

    This process reads the text, since where a part ends depends on all before it, and
    hands the chunks on; with several workers two chunks for each are held in memory,
    else one. After a kill the finished parts are skipped: the text is read again, not
    tokenized again.

    Raises:
      UserError: the folder was made from something else; the corpus is empty, too
        small for the held-out fraction, or mostly unknown to the tokenizer; the disk is
        full.
    """
    if not 0 < heldout_fraction < 1:
        raise UserError(
            f"data.heldout_fraction={heldout_fraction} is not between 0 and 1 (both "
            "excluded). 0.01 keeps one document in a hundred for evaluation."
        )
    _claim(folder, key(corpus, tokenizer, heldout_fraction, framing))
    parts = folder / "parts"
    try:
        if not is_finished(folder):
            _remove_stale_files(folder)
            tokenizer.save(folder)
            if not (parts / "counts.json").exists():
                _write_parts(
                    corpus, tokenizer, parts, heldout_fraction, framing, workers
                )
            _join(folder, tokenizer.vocab_size)
    except FileNotFoundError:  # another process has finished, and removed the parts
        if not is_finished(folder):
            raise
    shutil.rmtree(parts, ignore_errors=True)


def is_finished(folder: Path) -> bool:
    return (folder / "index.json").exists()


def _write_parts(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Path,
    heldout_fraction: float,
    framing: Framing,
    workers: Workers,
) -> None:
    folder.mkdir(exist_ok=True)

    def begin(number: int, documents: list[str]) -> Future:
        """The counts of a part to come, or of one that is there already."""
        finished = folder / f"{number:05d}.json"
        if finished.exists():
            return here(json.loads, finished.read_text())
        settings = {"heldout_fraction": heldout_fraction, "framing": framing}
        return workers.submit(
            write_part, documents, tokenizer, folder, number, **settings
        )

    counts = []
    warned = False
    copies = Copies()
    tasks = itertools.starmap(begin, enumerate(_chunks_with_progress(corpus, copies)))
    for task in _ahead(tasks, 2 * workers.count - 2):
        counts.append(task.result())
        warned = _check_unknown_pieces(counts, framing, warned)
    _check_splits(corpus, counts, heldout_fraction)
    found = {"parts": counts, "copies": copies.count(), "empty": corpus.empty}
    _write_json(folder / "counts.json", found)


def _ahead(tasks: Iterator[Future], count: int) -> Iterator[Future]:
    """The tasks in order, each when `count` more have begun."""
    begun: collections.deque[Future] = collections.deque()
    for task in tasks:
        begun.append(task)
        if len(begun) > count:
            yield begun.popleft()
    yield from begun


def write_part(
    documents: list[str],
    tokenizer: Tokenizer,
    folder: Path,
    number: int,
    *,
    heldout_fraction: float,
    framing: Framing,
) -> dict[str, dict[str, int]]:
    """Writes the files of part `number`; they depend on nothing but the arguments.

    Returns:
      The counts of each split: documents, those skipped since no piece is left of
      them, tokens, unknown ones, UTF-8 bytes of text, and words, apart by spaces.
    """
    heldout = [is_heldout(document, heldout_fraction) for document in documents]
    counts = {}
    for split in SPLITS:
        mine = [
            document
            for document, held in zip(documents, heldout, strict=True)
            if held == (split == "heldout")
        ]
        tokens, document_offsets, sentence_offsets = _encode(mine, tokenizer, framing)
        stem = f"{number:05d}.{split}"
        _write_array(folder / f"{stem}.tokens.npy", tokens)
        _write_array(folder / f"{stem}.documents.npy", document_offsets)
        if framing.split_sentences:
            _write_array(folder / f"{stem}.sentences.npy", sentence_offsets)
        counts[split] = {
            "documents": len(document_offsets) - 1,
            "skipped": len(mine) - len(document_offsets) + 1,
            "tokens": len(tokens),
            "unknown": count_pieces(tokenizer, tokens)[0],
            "text_bytes": sum(_utf8_bytes(document) for document in mine),
            "words": sum(len(document.split()) for document in mine),
        }
    _write_json(folder / f"{number:05d}.json", counts)
    return counts


# What ends a sentence: Latin, Arabic, Urdu, Devanagari and Armenian marks before a
# space, closing quotes included; the marks of Chinese and Japanese, Burmese, Khmer,
# Ethiopic, Tibetan and Mongolian need no space. Thai and Lao have none.
_SENTENCE_END = re.compile(
    r"""[.!?…؟۔।॥։]+["'”’»)\]]*\s+ | [。！？｡။។៕።፧፨།༎᠃]+[」』”’»）)\]]*\s*""",
    re.VERBOSE,
)


def split_sentences(document: str) -> list[str]:
    """A line is a sentence, as in BERT's input format; long lines are cut further.

    Cut at the marks that end sentences, which is only a guess (abbreviations); next
    sentence prediction needs stretches of text, not grammar.
    """
    sentences = []
    for line in document.split("\n"):
        start = 0
        if _utf8_bytes(line) > LINE_BYTES:
            for end in _SENTENCE_END.finditer(line):
                sentences.append(line[start : end.end()].strip())
                start = end.end()
        sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]


@dataclass(frozen=True)
class Shards:
    """One split as a single stream of tokens, memory-mapped.

    Nothing is opened before it is asked for, and a pickle holds the two fields alone.

    Attributes:
      split: "train" or "heldout".
      tokens: uint16 or uint32 [N], the stream, framing included; each slice is read
        from the file when it is used.
      num_tokens: N.
      documents: int64 [D+1], where each document begins in the stream, and N.
      sentences: int64 [S+1], the same for sentences; None unless they were stored.
      unigram_counts: int64 [V], how often each id occurs.
      text_bytes: UTF-8 bytes of the text, for bits per byte.
    """

    folder: Path
    split: str

    def __reduce__(self):
        return Shards, (self.folder, self.split)

    @functools.cached_property
    def tokens(self) -> Integer[np.ndarray, " N"]:
        return self._open("tokens")

    @functools.cached_property
    def documents(self) -> Int64[np.ndarray, " D_plus_1"]:
        return self._open("documents")

    @functools.cached_property
    def sentences(self) -> Int64[np.ndarray, " S_plus_1"] | None:
        stored = read_key(self.folder)["framing"]["split_sentences"]
        return self._open("sentences") if stored else None

    @functools.cached_property
    def unigram_counts(self) -> Int64[np.ndarray, " V"]:
        return self._open("unigram_counts")

    @functools.cached_property
    def text_bytes(self) -> int:
        return read_counts(self.folder)[self.split]["text_bytes"]

    @functools.cached_property
    def num_words(self) -> int:
        """Apart by spaces.

        Raises:
          UserError: these shards were written before words were counted.
        """
        counts = read_counts(self.folder)[self.split]
        if "words" not in counts:
            raise UserError(
                f"{self.folder} was written before words were counted: delete it, and "
                "the same line writes it anew, or use tokens"
            )
        return counts["words"]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def _open(self, kind: str) -> Integer[np.ndarray, " N"]:
        """As a plain array: the subclass np.memmap is slow to slice."""
        path = self.folder / f"{self.split}.{kind}.npy"
        return np.asarray(np.load(path, mmap_mode="r"))


def open_shards(folder: Path, split: str) -> Shards:
    """The finished shards of a split ("train" or "heldout")."""
    assert split in SPLITS, split
    if not is_finished(folder):
        raise UserError(
            f"{folder} holds no finished shards (index.json is missing). Run "
            "prepare.py with the same config; it goes on where it stopped."
        )
    return Shards(folder, split)


def read_counts(folder: Path) -> dict:
    """What finished shards hold: of each split its documents, skipped ones, tokens,
    unknown ones, text_bytes and words; and "copies", the documents that stand there
    before, and "empty", the records without text."""
    return json.loads((folder / "index.json").read_text())


def read_key(folder: Path) -> dict:
    """What the shards in a folder were made of."""
    return json.loads((folder / "key.json").read_text())


def check_format(there: dict, what: str) -> None:
    """Raises UserError unless a key is of this version's format."""
    if there["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{what} begun by another version of Foreword (format "
            f"{there['format_version']} of its shards, here {FORMAT_VERSION}) and "
            "cannot be gone on with: choose another folder (predict.py still opens a "
            "run)"
        )


def check_same_key(there: dict, now: dict, what: str) -> None:
    """Raises UserError, naming what differs, unless both keys are equal."""
    check_format(there, what)
    old, new = _flat(there), _flat(now)
    differences = [
        f"  {name}: there {old.get(name, 'absent')!r}, now {new.get(name, 'absent')!r}"
        for name in sorted(old | new)
        if old.get(name, "absent") != new.get(name, "absent")
    ]
    if differences:
        raise UserError(
            f"{what} made from something else:\n"
            + "\n".join(differences)
            + "\nChoose another folder, or delete this one to make it anew."
        )


def _claim(folder: Path, made_of: dict) -> None:
    """Makes the folder ours by writing its key, or finds that it already is."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "key.json").exists():
        check_same_key(read_key(folder), made_of, f"the shards in {folder} were")
    else:
        _write_json(folder / "key.json", made_of)


def _flat(tree: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _batches(documents: Iterable[str], size: int) -> Iterator[list[str]]:
    """Cuts after the document that fills `size` bytes of UTF-8."""
    batch, filled = [], 0
    for document in documents:
        batch.append(document)
        filled += _utf8_bytes(document)
        if filled >= size:
            yield batch
            batch, filled = [], 0
    if batch:
        yield batch


class Copies:
    """Counts the documents that came before, by a hash of their text.

    Exactly while there are no more than `REMEMBERED_DOCUMENTS`; of more, those whose
    hash is below a threshold stand for all.
    """

    def __init__(self):
        self.threshold = 2**64
        self.times: collections.Counter[int] = collections.Counter()

    def add(self, document: str) -> None:
        hashed = hashlib.blake2b(document.encode(), digest_size=8, person=b"copies")
        rank = int.from_bytes(hashed.digest(), "big")
        if rank >= self.threshold:
            return
        self.times[rank] += 1
        while len(self.times) > REMEMBERED_DOCUMENTS:
            self.threshold //= 2
            for other in [*self.times]:
                if other >= self.threshold:
                    del self.times[other]

    def count(self) -> int:
        found = self.times.total() - len(self.times)
        return round(found * 2**64 / self.threshold)


def _chunks_with_progress(corpus: Corpus, copies: Copies) -> Iterator[list[str]]:
    """Chunks of the corpus; counts those worked off, in bytes of text."""
    with tqdm(desc="tokenizing", unit="B", unit_scale=True) as bar:
        for chunk in _batches(corpus, CHUNK_BYTES):
            read = corpus.fraction_read  # before the work, which belongs to this chunk
            for document in chunk:
                copies.add(document)
            yield chunk
            done = bar.n + sum(map(_utf8_bytes, chunk))
            # The size of the text is unknown until its end; this estimate of it is
            # what the bar needs to tell the time left.
            bar.total = round(done / read) if read > 0 else None
            bar.update(done - bar.n)


def _encode(
    documents: list[str], tokenizer: Tokenizer, framing: Framing
) -> tuple[
    Integer[np.ndarray, " N"],
    Int64[np.ndarray, " D_plus_1"],
    Int64[np.ndarray, " S_plus_1"],
]:
    """Token ids, document offsets and sentence offsets of some documents."""
    frame_start = _ids(framing.document_start)
    frame_end = _ids(framing.document_end)
    parts, document_lengths, sentence_lengths = [], [], []
    for batch in _batches(documents, ENCODE_BYTES):
        sentences = [
            split_sentences(document) if framing.split_sentences else [document]
            for document in batch
        ]
        found = tokenizer.encode_batch([s for text in sentences for s in text])
        _check_ids(_concatenate(found), tokenizer)
        encoded = iter(found)
        for text in sentences:
            pieces = [ids for ids in (next(encoded) for _ in text) if len(ids)]
            if not pieces:
                continue  # nothing is left of it, for example only control characters
            if framing.split_sentences:
                pieces = [part for ids in pieces for part in _cut_long(ids, tokenizer)]
            pieces[0] = np.concatenate([frame_start, pieces[0]])
            pieces[-1] = np.concatenate([pieces[-1], frame_end])
            lengths = [len(ids) for ids in pieces]
            parts += pieces
            sentence_lengths += lengths
            document_lengths.append(sum(lengths))
    tokens = _concatenate(parts).astype(_token_type(tokenizer.vocab_size))
    return tokens, _offsets(document_lengths), _offsets(sentence_lengths)


def _cut_long(
    sentence: Int32[np.ndarray, " N"], tokenizer: Tokenizer
) -> list[Int32[np.ndarray, " M"]]:
    """Parts of at most `SENTENCE_TOKENS`, cut before a word where there is one."""
    cuts = [0]
    while len(sentence) - cuts[-1] > SENTENCE_TOKENS:
        possible = sentence[cuts[-1] + 1 : cuts[-1] + 1 + SENTENCE_TOKENS]
        words = np.flatnonzero(tokenizer.starts_word[possible])
        cuts.append(cuts[-1] + 1 + int(words[-1] if words.size else len(possible) - 1))
    return np.split(sentence, cuts[1:])


def _check_ids(tokens: Int32[np.ndarray, " N"], tokenizer: Tokenizer) -> None:
    """An id outside the embedding table is NaN or the last row in jax, silently."""
    if not tokens.size:
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= tokenizer.vocab_size:
        raise UserError(
            f"the tokenizer gave ids from {low} to {high}, but its vocabulary has "
            f"{tokenizer.vocab_size} pieces (ids 0 to {tokenizer.vocab_size - 1}). Its "
            "files do not belong together; bring a consistent set."
        )


def text_pieces(counts: dict[str, int], framing: dict) -> int:
    """Of the tokens of a split those that are no frame of a document."""
    frame = [framing["document_start"], framing["document_end"]]
    return counts["tokens"] - counts["documents"] * (2 - frame.count(None))


def _check_unknown_pieces(counts: list[dict], framing: Framing, warned: bool) -> bool:
    """Whether it has warned of a tokenizer that does not fit the text so far.

    Raises:
      UserError: most of the pieces are unknown.
    """
    found = [shard[split] for shard in counts for split in SPLITS]
    unknown = sum(one["unknown"] for one in found)
    pieces = sum(text_pieces(one, asdict(framing)) for one in found)
    if unknown > UNKNOWN_LIMIT * pieces:
        raise UserError(
            f"{unknown / pieces:.1%} of the pieces of the text are unknown to the "
            f"tokenizer, and nothing can be learnt from it so: {FITTING}"
        )
    if warned or unknown <= UNKNOWN_SHARE * pieces:
        return warned
    warnings.warn(
        f"{unknown / pieces:.1%} of the pieces of the text are unknown to the "
        f"tokenizer, which does not fit it: {FITTING}",
        stacklevel=3,
    )
    return True


def _check_splits(corpus: Corpus, counts: list[dict], heldout_fraction: float) -> None:
    documents = {
        split: sum(shard[split]["documents"] for shard in counts) for split in SPLITS
    }
    total = sum(documents.values())
    if not total:
        raise UserError(
            f"data.corpus={corpus.source!r} holds no text. Name files with text in "
            "them, or check the field and the document boundary."
        )
    for split in SPLITS:
        if not documents[split]:
            raise UserError(
                f"the {split} split is empty: of the {total} documents of "
                f"{corpus.source!r} the fraction data.heldout_fraction="
                f"{heldout_fraction} leaves none for it. Add text, change the "
                "fraction, or cut the text into more documents "
                "(data.document_boundary)."
            )


def _join(folder: Path, vocab_size: int) -> None:
    """Joins the parts to one file of a kind, one of them in memory at a time."""
    counts = json.loads((folder / "parts" / "counts.json").read_text())
    parts = counts.pop("parts")
    kinds = ["documents"]
    if read_key(folder)["framing"]["split_sentences"]:
        kinds.append("sentences")
    for split in SPLITS:
        stems = [folder / "parts" / f"{n:05d}.{split}" for n in range(len(parts))]
        lengths = [part[split]["tokens"] for part in parts]
        unigram_counts = _join_tokens(
            folder / f"{split}.tokens.npy", stems, sum(lengths), vocab_size
        )
        _write_array(folder / f"{split}.unigram_counts.npy", unigram_counts)
        for kind in kinds:
            paths = [Path(f"{stem}.{kind}.npy") for stem in stems]
            _join_offsets(folder / f"{split}.{kind}.npy", paths, _offsets(lengths))
        fewest = min((part[split] for part in parts), key=len)  # of before some came
        counts[split] = {n: sum(part[split][n] for part in parts) for n in fewest}
    _write_json(folder / "index.json", counts)


def _join_tokens(
    path: Path, stems: list[Path], size: int, vocab_size: int
) -> Int64[np.ndarray, " V"]:
    """Joins tokens; how often each id occurs among them."""
    unigram_counts = np.zeros(vocab_size, np.int64)
    with new_file(path) as file:
        _write_header(file, _token_type(vocab_size), size)
        for stem in stems:
            tokens = np.load(f"{stem}.tokens.npy")
            file.write(tokens.data)
            unigram_counts += np.bincount(tokens, minlength=vocab_size)
    return unigram_counts


def _join_offsets(path: Path, paths: list[Path], starts: Int64[np.ndarray, " K"]):
    """Joins offsets within each part, shifted to the stream.

    The end of a part is the beginning of the next, so it is written once.
    """
    size = sum(len(np.load(part, mmap_mode="r")) - 1 for part in paths) + 1
    with new_file(path) as file:
        _write_header(file, np.dtype(np.int64), size)
        for part, start in zip(paths, starts[:-1], strict=True):
            file.write((np.load(part)[:-1] + start).tobytes())
        file.write(starts[-1:].tobytes())


def _token_type(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def _write_array(path: Path, array: Integer[np.ndarray, " N"]) -> None:
    with new_file(path) as file:
        _write_header(file, array.dtype, len(array))
        # Not ndarray.tofile (nor np.save, which calls it): it loses the errno of a
        # full disk.
        file.write(array.data)


def _write_header(file: BinaryIO, dtype: np.dtype, size: int) -> None:
    np.lib.format.write_array_header_1_0(
        file,
        {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (size,),
        },
    )


def _write_json(path: Path, value: dict) -> None:
    with new_file(path) as file:
        file.write(json.dumps(value, indent=1).encode())


def _remove_stale_files(folder: Path) -> None:
    """Temporary files of killed processes; those of a living one are seconds old."""
    for path in folder.rglob("*.tmp"):
        with suppress(FileNotFoundError):  # just renamed by another process
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def _ids(token: int | None) -> Int32[np.ndarray, " N"]:
    return np.array([] if token is None else [token], np.int32)


def _offsets(lengths: list[int]) -> Int64[np.ndarray, " K"]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _concatenate(parts: list) -> Int32[np.ndarray, " N"]:
    return np.concatenate([np.zeros(0, np.int32), *parts])


def _utf8_bytes(text: str) -> int:
    return len(text.encode())
