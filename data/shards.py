"""Text to token shards, and the reading of them.

One pass cuts the corpus into chunks of a fixed amount of text; `write_shard` turns a
chunk into the files of one shard, here or wherever `Workers` has it done. A finished
folder holds, for each split ("train" and "heldout") and each shard k:

    key.json                    what the shards were made of; a folder has one key
    SPLIT-0000k.tokens.npy      token ids, flat, uint16 if the vocabulary fits, else 32
    SPLIT-0000k.documents.npy   int64 [D+1], where documents begin, and the end
    SPLIT-0000k.sentences.npy   int64 [S+1], the same for sentences, if asked for
    shard-0000k.json            counts; written last: where it exists, shard k is whole
    SPLIT.documents.npy         the offsets of all shards, in the split's whole stream
    SPLIT.sentences.npy
    SPLIT.unigram_counts.npy    int64 [V]
    index.json                  key and totals; written last of all

Every file is written under a temporary name and renamed, so a process killed at any
moment leaves only whole files behind, and two processes that prepare the same folder
at once write the same bytes.
"""

import collections
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int32, Int64, Integer
from tqdm import tqdm

from data.corpora import Corpus, cache_folder, is_heldout
from data.tokenizers import Tokenizer
from errors import UserError

FORMAT_VERSION = 1
SPLITS = ("train", "heldout")
CHUNK_BYTES = (
    16 << 20
)  # UTF-8 text of one shard; what a kill can lose, what memory holds
ENCODE_BYTES = 1 << 20  # text given to the tokenizer at once; its results are bulky
LINE_CHARACTERS = 200  # a longer line is taken for a paragraph and cut into sentences
MAPPED_SHARDS = 256  # memory-mapped at once; each holds a file descriptor
STALE_SECONDS = 600  # a temporary file this old belongs to a process that was killed
UNKNOWN_WARNING = 0.01


@dataclass(frozen=True)
class Framing:
    """How a document lies in the token stream."""

    document_start: int | None  # id put before each document
    document_end: int | None  # id put after each document
    split_sentences: bool  # tokenize sentence by sentence, and store their offsets


@dataclass(frozen=True)
class Workers:
    """Who writes the shards; the same bytes, whoever it is.

    Attributes:
      count: how many shards are written at once.
      submit: begins `function(*arguments, **settings)`, and gives its future.
    """

    count: int
    submit: Callable[..., Future]


def _here(function: Callable, *arguments: object, **settings: object) -> Future:
    future: Future = Future()
    future.set_result(function(*arguments, **settings))
    return future


THIS_PROCESS = Workers(1, _here)


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
    digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8)
    return cache_folder() / "shards" / f"{name}-{digest.hexdigest()}"


def write_shards(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    heldout_fraction: float,
    framing: Framing,
    workers: Workers = THIS_PROCESS,
) -> None:
    """Writes the shards of a corpus; does nothing where they are complete.

    This process reads the text, since where a shard ends depends on all before it, and
    hands the chunks on; with several workers two chunks for each are held in memory,
    else one. After a kill the finished shards are skipped: the text is read again, not
    tokenized again.

    Raises:
      UserError: the folder was made from something else; the corpus is empty, or too
        small for the held-out fraction; the disk is full.
    """
    if not 0 < heldout_fraction < 1:
        raise UserError(
            f"data.heldout_fraction={heldout_fraction} is not between 0 and 1 (both "
            "excluded). 0.01 keeps one document in a hundred for evaluation."
        )
    made_of = key(corpus, tokenizer, heldout_fraction, framing)
    _claim(folder, made_of)
    if (folder / "index.json").exists():
        return
    _remove_stale_files(folder)

    def begin(number: int, documents: list[str]) -> Future:
        """The counts of a shard to come, or of one that is there already."""
        finished = folder / f"shard-{number:05d}.json"
        if finished.exists():
            return _here(json.loads, finished.read_text())
        settings = {"heldout_fraction": heldout_fraction, "framing": framing}
        return workers.submit(
            write_shard, documents, tokenizer, folder, number, **settings
        )

    counts = []
    warned = False
    tasks = itertools.starmap(begin, enumerate(_chunks_with_progress(corpus)))
    for task in _ahead(tasks, 2 * workers.count - 2):
        counts.append(task.result())
        warned = warned or _warn_of_unknown_pieces(counts)
    _check_splits(corpus, counts, heldout_fraction)
    _finish(folder, made_of, counts, tokenizer.vocab_size)


def _ahead(tasks: Iterator[Future], count: int) -> Iterator[Future]:
    """The tasks in order, each when `count` more have begun."""
    begun: collections.deque[Future] = collections.deque()
    for task in tasks:
        begun.append(task)
        if len(begun) > count:
            yield begun.popleft()
    yield from begun


def write_shard(
    documents: list[str],
    tokenizer: Tokenizer,
    folder: Path,
    number: int,
    *,
    heldout_fraction: float,
    framing: Framing,
) -> dict[str, dict[str, int]]:
    """Writes the files of shard `number`; they depend on nothing but the arguments.

    Returns:
      The counts of each split: documents, tokens, unknown, text_bytes.
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
        stem = f"{split}-{number:05d}"
        _write_array(folder / f"{stem}.tokens.npy", tokens)
        _write_array(folder / f"{stem}.documents.npy", document_offsets)
        if framing.split_sentences:
            _write_array(folder / f"{stem}.sentences.npy", sentence_offsets)
        counts[split] = {
            "documents": len(document_offsets) - 1,
            "tokens": len(tokens),
            "unknown": _count_unknown(tokens, tokenizer),
            "text_bytes": sum(_utf8_bytes(document) for document in mine),
        }
    _write_json(folder / f"shard-{number:05d}.json", counts)
    return counts


# What ends a sentence: Latin, Arabic, Urdu and Devanagari marks before a space, closing
# quotes included; the full-width marks of Chinese and Japanese need no space.
_SENTENCE_END = re.compile(
    r"""[.!?…؟۔।॥]+["'”’»)\]]*\s+ | [。！？]+[」』”’）)\]]*\s*""", re.VERBOSE
)


def split_sentences(document: str) -> list[str]:
    """A line is a sentence, as in BERT's input format; long lines are cut further.

    Cut at the marks that end sentences, which is only a guess (abbreviations); next
    sentence prediction needs stretches of text, not grammar.
    """
    sentences = []
    for line in document.split("\n"):
        start = 0
        if len(line) > LINE_CHARACTERS:
            for end in _SENTENCE_END.finditer(line):
                sentences.append(line[start : end.end()].strip())
                start = end.end()
        sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]


class Shards:
    """One split as a single stream of tokens, memory-mapped.

    Attributes:
      split: "train" or "heldout".
      num_tokens: length N of the stream, framing included.
      text_bytes: UTF-8 bytes of the text, for bits per byte.
      tokens: [N], the stream.
      documents: int64 [D+1], where each document begins in the stream, and N.
      sentences: int64 [S+1], the same for sentences; None unless they were stored.
      unigram_counts: int64 [V], how often each id occurs.
    """

    def __init__(self, folder: Path, split: str, index: dict):
        counts = index["splits"][split]
        self.split = split
        self.num_tokens: int = sum(counts["shard_tokens"])
        self.text_bytes: int = counts["text_bytes"]
        self.documents = _open_array(folder / f"{split}.documents.npy")
        self.sentences = (
            _open_array(folder / f"{split}.sentences.npy")
            if index["key"]["framing"]["split_sentences"]
            else None
        )
        self.unigram_counts = _open_array(folder / f"{split}.unigram_counts.npy")
        self._starts = _offsets(counts["shard_tokens"])
        # The cache is bounded: a thousand mapped files would exhaust the descriptors.
        self._open_shard = lru_cache(MAPPED_SHARDS)(
            lambda number: _open_array(folder / f"{split}-{number:05d}.tokens.npy")
        )

    @cached_property
    def tokens(self) -> Integer[np.ndarray, " N"]:
        parts = [self._open_shard(number) for number in range(len(self._starts) - 1)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def read(self, start: int, stop: int) -> Int32[np.ndarray, " N"]:
        """The tokens stream[start:stop], across shards; 0 <= start <= stop <= N."""
        assert 0 <= start <= stop <= self.num_tokens, (start, stop, self.num_tokens)
        parts = []
        while start < stop:
            number = int(np.searchsorted(self._starts, start, side="right")) - 1
            first, end = self._starts[number : number + 2]
            part = self._open_shard(number)[start - first : min(stop, end) - first]
            parts.append(part.astype(np.int32))
            start += len(part)
        return parts[0] if len(parts) == 1 else _concatenate(parts)


def open_shards(folder: Path, split: str) -> Shards:
    """Opens the finished shards of a split ("train" or "heldout")."""
    assert split in SPLITS, split
    index = folder / "index.json"
    if not index.exists():
        raise UserError(
            f"{folder} holds no finished shards (index.json is missing). Run "
            "prepare.py with the same config; it goes on where it stopped."
        )
    return Shards(folder, split, json.loads(index.read_text()))


def read_key(folder: Path) -> dict:
    """What the shards in a folder were made of."""
    return json.loads((folder / "key.json").read_text())


def check_same_key(there: dict, now: dict, what: str) -> None:
    """Raises UserError, naming what differs, unless both keys are equal."""
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


def _chunks_with_progress(corpus: Corpus) -> Iterator[list[str]]:
    """Chunks of the corpus; counts those worked off, in bytes of text."""
    with tqdm(desc="tokenizing", unit="B", unit_scale=True) as bar:
        for chunk in _batches(corpus, CHUNK_BYTES):
            read = corpus.fraction_read  # before the work, which belongs to this chunk
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
        encoded = iter(tokenizer.encode_batch([s for text in sentences for s in text]))
        for text in sentences:
            pieces = [ids for ids in (next(encoded) for _ in text) if len(ids)]
            if not pieces:
                continue  # nothing is left of it, for example only control characters
            pieces[0] = np.concatenate([frame_start, pieces[0]])
            pieces[-1] = np.concatenate([pieces[-1], frame_end])
            lengths = [len(ids) for ids in pieces]
            parts += pieces
            sentence_lengths += lengths
            document_lengths.append(sum(lengths))
    tokens = _concatenate(parts)
    _check_ids(tokens, tokenizer)
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    return tokens.astype(dtype), _offsets(document_lengths), _offsets(sentence_lengths)


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


def _count_unknown(tokens: Integer[np.ndarray, " N"], tokenizer: Tokenizer) -> int:
    if "unk" not in tokenizer.special_ids:
        return 0  # byte-level vocabularies know everything
    return int(np.count_nonzero(tokens == tokenizer.special_ids["unk"]))


def _warn_of_unknown_pieces(counts: list[dict]) -> bool:
    """Warns of a tokenizer that does not fit the text so far; tells whether it did."""
    unknown = sum(shard[split]["unknown"] for shard in counts for split in SPLITS)
    tokens = sum(shard[split]["tokens"] for shard in counts for split in SPLITS)
    too_many = unknown > UNKNOWN_WARNING * tokens
    if too_many:
        warnings.warn(
            f"{unknown / tokens:.1%} of the tokens are unknown pieces: the tokenizer "
            "does not fit this text. Train one on it, enlarge its vocabulary, or "
            "choose a byte-level one, which knows every character.",
            stacklevel=3,
        )
    return too_many


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


def _finish(folder: Path, made_of: dict, counts: list[dict], vocab_size: int) -> None:
    """Joins the offsets of all shards, counts the tokens and writes the index."""
    splits = {}
    for split in SPLITS:
        shard_tokens = [shard[split]["tokens"] for shard in counts]
        starts = _offsets(shard_tokens)
        kinds = ["documents"]
        if made_of["framing"]["split_sentences"]:
            kinds.append("sentences")
        for kind in kinds:
            paths = [
                folder / f"{split}-{number:05d}.{kind}.npy"
                for number in range(len(counts))
            ]
            _join_offsets(folder / f"{split}.{kind}.npy", paths, starts)
        unigram_counts = np.zeros(vocab_size, np.int64)
        for number, size in enumerate(shard_tokens):
            if size:
                tokens = _open_array(folder / f"{split}-{number:05d}.tokens.npy")
                unigram_counts += np.bincount(tokens, minlength=vocab_size)
        _write_array(folder / f"{split}.unigram_counts.npy", unigram_counts)
        splits[split] = {
            "shard_tokens": shard_tokens,
            "documents": sum(shard[split]["documents"] for shard in counts),
            "unknown": sum(shard[split]["unknown"] for shard in counts),
            "text_bytes": sum(shard[split]["text_bytes"] for shard in counts),
        }
    _write_json(folder / "index.json", {"key": made_of, "splits": splits})


def _join_offsets(path: Path, paths: list[Path], starts: Int64[np.ndarray, " K"]):
    """Offsets within each shard, shifted to the stream; one shard in memory at a time.

    The end of a shard is the beginning of the next, so it is written once.
    """
    size = sum(len(_open_array(shard)) - 1 for shard in paths) + 1
    with _new_file(path) as file:
        _write_header(file, np.dtype(np.int64), size)
        for shard, start in zip(paths, starts[:-1], strict=True):
            file.write((np.load(shard)[:-1] + start).tobytes())
        file.write(starts[-1:].tobytes())


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name once it is whole."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f"the disk is full: writing {path.name} to {path.parent} failed with "
            f"{free / 1e6:.1f} MB free. Free some space, or set FOREWORD_CACHE to a "
            "folder on a larger disk; the finished shards are kept, run again to go on."
        ) from error


def _write_array(path: Path, array: Integer[np.ndarray, " N"]) -> None:
    with _new_file(path) as file:
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
    with _new_file(path) as file:
        file.write(json.dumps(value, indent=1).encode())


def _open_array(path: Path) -> Integer[np.ndarray, " N"]:
    """Memory-mapped, as a plain array: the subclass np.memmap is slow to slice."""
    return np.asarray(np.load(path, mmap_mode="r"))


def _remove_stale_files(folder: Path) -> None:
    """Temporary files of killed processes; those of a living one are seconds old."""
    for path in folder.glob("*.tmp"):
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
