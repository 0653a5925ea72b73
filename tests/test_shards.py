"""Shards: what is written, in how much memory, what a kill or a full disk leaves."""

import errno
import importlib
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from data import corpora, shards, tokenizers
from data.workers import process_workers, ray_workers
from errors import UserError

ROOT = Path(__file__).parents[1]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcde", "##x", *".。日本"]
PLAIN = shards.Framing(None, None, split_sentences=False)
FRAMED = shards.Framing(2, 3, split_sentences=False)
SENTENCES = shards.Framing(None, None, split_sentences=True)


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n")
    return tokenizers.load(str(path))


@pytest.fixture
def heldout_by_name(monkeypatch):
    """Documents that begin with "e" are held out."""
    monkeypatch.setattr(
        shards, "is_heldout", lambda document, fraction: document.startswith("e")
    )


def make_corpus(path, documents):
    path.write_text("\n\n".join(documents))
    return corpora.Corpus(
        source=str(path), text_field="text", document_boundary="blank_line"
    )


def write(corpus, tokenizer, folder, framing, heldout_fraction=0.1):
    shards.write_shards(
        corpus, tokenizer, folder, heldout_fraction=heldout_fraction, framing=framing
    )


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def count_parts(monkeypatch):
    """The numbers of the parts that will have been written."""
    written, write_part = [], shards.write_part

    def counted(documents, tokenizer, folder, number, **settings):
        written.append(number)
        return write_part(documents, tokenizer, folder, number, **settings)

    monkeypatch.setattr(shards, "write_part", counted)
    return written


def test_stream_and_document_offsets(tmp_path, tokenizer, heldout_by_name):
    corpus = make_corpus(tmp_path / "in.txt", ["a b", "e", "c dx [SEP]", "é"])
    write(corpus, tokenizer, tmp_path / "out", FRAMED)
    train = shards.open_shards(tmp_path / "out", "train")
    stream = train.tokens.astype(np.int32)
    # "[SEP]" in the text is text: three pieces that this vocabulary does not know.
    assert stream.tolist() == [2, 5, 6, 3, 2, 7, 8, 10, 1, 1, 1, 3, 2, 9, 3]
    assert stream.dtype == np.int32
    assert train.documents.tolist() == [0, 4, 12, 15]
    assert train.sentences is None
    assert train.text_bytes == len("a b") + len("c dx [SEP]") + len("é".encode())
    assert train.unigram_counts.tolist() == np.bincount(stream, minlength=15).tolist()
    heldout = shards.open_shards(tmp_path / "out", "heldout")
    assert heldout.tokens.astype(np.int32).tolist() == [2, 9, 3]
    assert heldout.tokens.dtype == np.uint16
    assert heldout.tokens.tolist() == [2, 9, 3]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("key.json", "index.json", "tokenizer.json"),
        *(
            f"{split}.{kind}.npy"
            for split in shards.SPLITS
            for kind in ("tokens", "documents", "unigram_counts")
        ),
    }


def test_sentence_offsets(tmp_path, tokenizer, heldout_by_name):
    corpus = make_corpus(tmp_path / "in.txt", ["a b\nc", "e", "dx. a"])
    write(corpus, tokenizer, tmp_path / "out", SENTENCES)
    train = shards.open_shards(tmp_path / "out", "train")
    assert train.tokens.astype(np.int32).tolist() == [5, 6, 7, 8, 10, 11, 5]
    assert train.documents.tolist() == [0, 3, 7]
    assert train.sentences.tolist() == [0, 2, 3, 7]


def test_lines_are_sentences_and_long_lines_are_cut(monkeypatch):
    assert shards.split_sentences("One. Two.\n\n Three ") == ["One. Two.", "Three"]
    monkeypatch.setattr(shards, "LINE_BYTES", 5)
    assert shards.split_sentences('He said "no." Then 3.14 of it... Why?! End') == [
        'He said "no."',
        "Then 3.14 of it...",
        "Why?!",
        "End",
    ]
    assert shards.split_sentences("日本語。「本当？」そうです。はい") == [
        "日本語。",
        "「本当？」",
        "そうです。",
        "はい",
    ]
    assert shards.split_sentences("यह एक है। वह दो है।") == ["यह एक है।", "वह दो है।"]
    assert shards.split_sentences("كيف حالك؟ بخير") == ["كيف حالك؟", "بخير"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("မြန်မာစာသည် လှသည်။", "ကောင်းသည်။"),  # Burmese
        ("ሰላም ነው።", "ደህና ነህ፧"),  # Ethiopic
        ("Բարև ձեզ։ ", "Ինչպես եք։"),  # Armenian, whose mark is not the colon
        ("ខ្ញុំទៅផ្សារ។", "គាត់ទៅសាលា។"),  # Khmer
        ("བཀྲ་ཤིས།", "བདེ་ལེགས།"),  # Tibetan
    ],
)
def test_sentence_ends_of_other_scripts(monkeypatch, first, second):
    """The line is longer than 200 bytes, though of fewer characters."""
    line = f"{first}{second} " * 9
    assert len(line.encode()) > shards.LINE_BYTES
    assert shards.split_sentences(line) == [first.strip(), second] * 9
    assert shards.split_sentences(first + second) == [first + second]


def test_long_sentences_are_cut_before_a_word(
    tmp_path, tokenizer, heldout_by_name, monkeypatch
):
    """Whatever the script, by the number of pieces; "dx" is d and ##x."""
    monkeypatch.setattr(shards, "SENTENCE_TOKENS", 4)
    texts = ["a b c d b", "a b c dx a", "dxxxxxx", "a b c d", "e"]
    corpus = make_corpus(tmp_path / "in.txt", texts)
    write(corpus, tokenizer, tmp_path / "out", SENTENCES)
    train = shards.open_shards(tmp_path / "out", "train")
    assert np.diff(train.sentences).tolist() == [4, 1, 3, 3, 4, 3, 4]
    assert np.diff(train.documents).tolist() == [5, 6, 7, 4]
    write(corpus, tokenizer, tmp_path / "whole", PLAIN)
    whole = shards.open_shards(tmp_path / "whole", "train")
    np.testing.assert_array_equal(train.tokens, whole.tokens)


def test_a_split_is_opened_where_it_is_used(tmp_path, tokenizer, heldout_by_name):
    corpus = make_corpus(tmp_path / "in.txt", ["a b", "e"])
    write(corpus, tokenizer, tmp_path / "out", SENTENCES)
    split = shards.open_shards(tmp_path / "out", "train")
    assert split.tokens.base is not None  # a view of the memory map
    pickled = pickle.dumps(split)
    assert len(pickled) < 300
    again = pickle.loads(pickled)
    assert "tokens" not in vars(again)
    assert again == split
    for name in ("tokens", "documents", "sentences", "unigram_counts"):
        np.testing.assert_array_equal(getattr(again, name), getattr(split, name))
    assert (again.num_tokens, again.text_bytes) == (2, 3)


def test_many_parts_are_joined_to_one_file(tmp_path, tokenizer, monkeypatch):
    rng = np.random.default_rng(0)
    documents = [
        "\n".join(" ".join(rng.choice(["a", "b", "cx", "d"], 5)) for _ in range(lines))
        for lines in rng.integers(1, 9, 60)
    ]
    corpus = make_corpus(tmp_path / "in.txt", documents)
    write(corpus, tokenizer, tmp_path / "one", SENTENCES, heldout_fraction=0.3)
    monkeypatch.setattr(shards, "CHUNK_BYTES", 100)
    parts_written = count_parts(monkeypatch)
    write(corpus, tokenizer, tmp_path / "many", SENTENCES, heldout_fraction=0.3)
    assert len(parts_written) > 10
    assert {*files_of(tmp_path / "many")} == {*files_of(tmp_path / "one")}
    for split in ("train", "heldout"):
        one = shards.open_shards(tmp_path / "one", split)
        many = shards.open_shards(tmp_path / "many", split)
        np.testing.assert_array_equal(many.tokens, one.tokens)
        np.testing.assert_array_equal(many.documents, one.documents)
        np.testing.assert_array_equal(many.sentences, one.sentences)
        np.testing.assert_array_equal(many.unigram_counts, one.unigram_counts)
        assert many.text_bytes == one.text_bytes


def test_large_vocabularies_take_32_bits(tmp_path, heldout_by_name):
    pieces = PIECES[:5] + [f"w{number}" for number in range(1 << 16)] + ["a", "e"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer = tokenizers.load(str(tmp_path / "vocab.txt"))
    corpus = make_corpus(tmp_path / "in.txt", ["a", "e"])
    write(corpus, tokenizer, tmp_path / "out", PLAIN)
    stored = shards.open_shards(tmp_path / "out", "train").tokens
    assert stored.dtype == np.uint32
    assert stored.tolist() == [(1 << 16) + 5]


def test_finished_parts_are_not_tokenized_again(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(shards, "CHUNK_BYTES", 30)
    corpus = make_corpus(tmp_path / "in.txt", [f"a b {'c ' * n}" for n in range(30)])
    write(corpus, tokenizer, tmp_path / "whole", PLAIN, heldout_fraction=0.3)
    folder = tmp_path / "out"
    written = count_parts(monkeypatch)
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(shards, "_join", interrupt)
        write(corpus, tokenizer, folder, PLAIN, heldout_fraction=0.3)
    first = [*written]
    (folder / "parts" / "00003.json").unlink()
    (folder / "parts" / "counts.json").unlink()
    write(corpus, tokenizer, folder, PLAIN, heldout_fraction=0.3)
    assert written == [*first, 3]
    assert files_of(folder) == files_of(tmp_path / "whole")
    write(corpus, tokenizer, folder, PLAIN, heldout_fraction=0.3)
    assert written == [*first, 3]


def interrupt(*_):
    raise KeyboardInterrupt


# A process of its own: text to shards, small enough chunks to be caught in the middle.
SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from data import corpora, shards, tokenizers
text, vocabulary, folder, shards.CHUNK_BYTES = *sys.argv[1:4], int(sys.argv[4])
def write(folder):
    corpus = corpora.Corpus(text, "text", "blank_line")
    shards.write_shards(corpus, tokenizers.load(vocabulary), Path(folder),
                        heldout_fraction=0.2, framing=shards.Framing(2, 3, True))
"""
ONCE = "write(folder)"
# For each n: killed before the n-th time that it renames or removes something.
KILLED_EVERYWHERE = """
def kill_at(number, function):
    def counted(*arguments, **settings):
        kill_at.count += 1
        if kill_at.count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **settings)
    return counted
kill_at.count = number = 0
died = True
while died:
    number += 1
    if not (child := os.fork()):
        Path.replace = kill_at(number, Path.replace)
        os.unlink, os.rmdir = kill_at(number, os.unlink), kill_at(number, os.rmdir)
        write(f"{folder}/{number}")
        os._exit(0)
    died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    write(f"{folder}/{number}")
"""


@pytest.fixture
def command(tmp_path, tokenizer):
    rng = np.random.default_rng(0)
    words = rng.choice(["a", "b", "cx", "d", "e."], (1000, 150))
    make_corpus(tmp_path / "in.txt", [" ".join(row) for row in words])

    def words_of(todo, folder, chunk_bytes):
        script = SCRIPT.format(root=str(ROOT)) + todo
        texts = [str(tmp_path / "in.txt"), str(tmp_path / "vocab.txt")]
        return [sys.executable, "-c", script, *texts, folder, str(chunk_bytes)]

    return words_of


def test_killed_and_restarted_equals_undisturbed(tmp_path, command):
    subprocess.run(command(ONCE, tmp_path / "undisturbed", 20_000), check=True)
    folder = tmp_path / "killed"
    for awaited in ("parts/00002.json", "parts/00009.json", "train.tokens.npy"):
        process = subprocess.Popen(command(ONCE, folder, 20_000))
        while not (folder / awaited).exists():
            assert process.poll() is None, "finished before it could be killed"
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(ONCE, folder, 20_000), check=True)
    left = {n: b for n, b in files_of(folder).items() if not n.endswith(".tmp")}
    assert left == files_of(tmp_path / "undisturbed")


def test_killed_anywhere_and_restarted_equals_undisturbed(tmp_path, command):
    make_corpus(tmp_path / "in.txt", [f"a {'b. ' * n} e" for n in range(60)])
    subprocess.run(command(ONCE, tmp_path / "undisturbed", 2_000), check=True)
    undisturbed = files_of(tmp_path / "undisturbed")
    folder = tmp_path / "killed"
    subprocess.run(command(KILLED_EVERYWHERE, folder, 2_000), check=True)
    folders = [*folder.iterdir()]
    # 3 parts of 7 files each and their counts, 8 joined files, key, tokenizer, index;
    # the parts and their folder go.
    assert len(folders) > 3 * 7 + 1 + 8 + 3 + 3 * 7 + 1 + 1
    for path in folders:
        left = {n: b for n, b in files_of(path).items() if not n.endswith(".tmp")}
        assert left == undisturbed, path.name


def test_two_processes_at_once(tmp_path, command):
    processes = [
        subprocess.Popen(command(ONCE, tmp_path / "both", 20_000)) for _ in range(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    subprocess.run(command(ONCE, tmp_path / "alone", 20_000), check=True)
    assert files_of(tmp_path / "both") == files_of(tmp_path / "alone")


def test_who_comes_last_finds_the_parts_gone(tmp_path, tokenizer, monkeypatch):
    """Another process finishes, and removes the parts, while this one joins them."""
    corpus = make_corpus(tmp_path / "in.txt", [f"a {'b ' * n}" for n in range(30)])
    folder, join = tmp_path / "out", shards._join

    def late(*arguments):
        monkeypatch.setattr(shards, "_join", join)
        write(corpus, tokenizer, folder, PLAIN, heldout_fraction=0.3)
        join(*arguments)

    monkeypatch.setattr(shards, "_join", late)
    write(corpus, tokenizer, folder, PLAIN, heldout_fraction=0.3)
    whole = files_of(folder)
    (folder / "index.json").unlink()
    write(corpus, tokenizer, folder, PLAIN, heldout_fraction=0.3)
    assert files_of(folder) == whole


def prepare_by(workers, tmp_path, tokenizer, monkeypatch):
    """Many shards by these workers, and beside them those of this process alone."""
    monkeypatch.setattr(shards, "CHUNK_BYTES", 2_000)
    lines = [f"{'a b cx ' * (n % 7)} d. e {n}" for n in range(400)]
    corpus = make_corpus(tmp_path / "in.txt", lines)
    for folder, chosen in (("here", shards.THIS_PROCESS), ("there", workers)):
        shards.write_shards(
            corpus,
            tokenizer,
            tmp_path / folder,
            heldout_fraction=0.2,
            framing=SENTENCES,
            workers=chosen,
        )
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")


def refuse(number):
    raise UserError(f"shard {number} cannot be written")


def die(_):
    os._exit(1)


def where(_):
    return os.getpid(), os.environ.get("TOKENIZERS_PARALLELISM")


def test_processes_write_the_same_bytes(tmp_path, tokenizer, monkeypatch):
    with process_workers(2, written_here=1) as workers:
        first, second = (workers.submit(where, n).result() for n in range(2))
        assert first[0] == os.getpid()
        assert second[0] != os.getpid() and second[1] == "false"
        prepare_by(workers, tmp_path, tokenizer, monkeypatch)
        with pytest.raises(UserError, match="shard 3 cannot be written"):
            workers.submit(refuse, 3).result()
    with (
        pytest.raises(UserError, match="--processes=1"),
        process_workers(2, written_here=0) as workers,
    ):
        workers.submit(die, 3).result()


def test_little_text_starts_no_process(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_context", interrupt)
    with process_workers(2) as workers:
        corpus = make_corpus(tmp_path / "in.txt", [f"a {n}" for n in range(30)])
        shards.write_shards(
            corpus,
            tokenizer,
            tmp_path / "out",
            heldout_fraction=0.3,
            framing=PLAIN,
            workers=workers,
        )


def test_a_ray_cluster_writes_the_same_bytes(tmp_path, tokenizer, monkeypatch):
    """Two nodes of one core each, and what a failing and a dying task say."""
    cluster_utils = pytest.importorskip(
        "ray.cluster_utils", reason="the extra 'cluster' is not installed"
    )
    # The nodes cannot import this file: its functions go to them whole.
    importlib.import_module("ray.cloudpickle").register_pickle_by_value(
        sys.modules[__name__]
    )
    node = {"num_cpus": 1, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(num_cpus=1)
        with ray_workers(cluster.address) as workers:
            assert workers.count == 2
            prepare_by(workers, tmp_path, tokenizer, monkeypatch)
        for function, message in (
            (refuse, "^shard 3 cannot be written$"),
            (die, "task of the Ray cluster was lost"),
        ):
            with (
                pytest.raises(UserError, match=message),
                ray_workers(cluster.address) as workers,
            ):
                workers.submit(function, 3).result()
    finally:
        cluster.shutdown()
    with (
        pytest.raises(UserError, match=r"--ray=auto: no Ray cluster answers"),
        ray_workers("auto"),
    ):
        pass


def test_ray_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(UserError, match="uv sync --extra cluster"),
        ray_workers("auto"),
    ):
        pass


MEMORY_SCRIPT = """
import sys, tempfile, tracemalloc
from pathlib import Path
from types import SimpleNamespace
import numpy as np
sys.path.insert(0, {root!r})
from data import shards
shards.CHUNK_BYTES, shards.ENCODE_BYTES = 400_000, 50_000
shards.REMEMBERED_DOCUMENTS = 500

class Bytes:
    vocab_size, special_ids, fingerprint = 256, {{}}, "bytes"
    starts_word = np.arange(256) == ord(" ")
    def encode_batch(self, texts):
        return [np.frombuffer(t.encode(), np.uint8).astype(np.int32) for t in texts]
    def save(self, folder): pass

class Lines:
    source, fraction_read, empty = "lines", 0.5, 0
    def __init__(self, size): self.size = size
    def fingerprint(self): return {{"size": self.size}}
    def __iter__(self):
        lines = 8 * (12 * "some words " + "\\n")
        return (f"document {{n}}\\n" + lines for n in range(self.size))

for size in (1_000, 1_000, 10_000):
    with tempfile.TemporaryDirectory() as folder:
        tracemalloc.start()
        shards.write_shards(Lines(size), Bytes(), Path(folder), heldout_fraction=0.1,
                            framing=shards.Framing(None, None, True))
        print(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
"""


def test_memory_does_not_grow_with_the_input():
    """1 MB and 10 MB of text; a first pass pays for what is cached."""
    script = MEMORY_SCRIPT.format(root=str(ROOT))
    peaks = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.split()
    _, small, large = map(int, peaks)
    assert large < small + 500_000


def test_full_disk(tmp_path, tokenizer, heldout_by_name, monkeypatch):
    corpus = make_corpus(tmp_path / "in.txt", ["a b", "e"])

    def no_space(descriptor):
        if len(list(folder.rglob("*"))) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "out"
    with monkeypatch.context() as full, pytest.raises(UserError) as error:
        full.setattr(os, "fsync", no_space)
        write(corpus, tokenizer, folder, PLAIN)
    assert str(folder) in str(error.value)
    assert "MB free" in str(error.value)
    names = {path.name for path in folder.rglob("*")}
    assert names == {
        *("key.json", "tokenizer.json", "parts"),
        *("00000.train.tokens.npy", "00000.train.documents.npy"),
    }
    write(corpus, tokenizer, folder, PLAIN)
    assert shards.open_shards(folder, "train").num_tokens == 2


def test_another_key_is_refused_by_name(tmp_path, tokenizer, heldout_by_name):
    corpus = make_corpus(tmp_path / "in.txt", ["a b", "e"])
    write(corpus, tokenizer, tmp_path / "out", PLAIN, heldout_fraction=0.1)
    with pytest.raises(UserError) as error:
        write(corpus, tokenizer, tmp_path / "out", FRAMED, heldout_fraction=0.2)
    message = str(error.value)
    assert str(tmp_path / "out") in message
    assert "heldout_fraction: there 0.1, now 0.2" in message
    assert "framing.document_start: there None, now 2" in message
    assert "tokenizer:" not in message


def test_another_format_is_refused_in_a_sentence(tmp_path, tokenizer, heldout_by_name):
    corpus = make_corpus(tmp_path / "in.txt", ["a b", "e"])
    write(corpus, tokenizer, tmp_path / "out", PLAIN)
    key = shards.read_key(tmp_path / "out")
    (tmp_path / "out" / "key.json").write_text(
        json.dumps(key | {"format_version": 1, "chunk_bytes": 5})
    )
    match = r"begun by another version of Foreword \(format 1 of its shards, here 3"
    with pytest.raises(UserError, match=match) as error:
        write(corpus, tokenizer, tmp_path / "out", PLAIN)
    assert "chunk_bytes" not in str(error.value)


def test_key_and_folder_follow_the_input(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path))
    corpus = make_corpus(tmp_path / "in.txt", ["a b", "e"])
    key = shards.key(corpus, tokenizer, 0.1, PLAIN)
    assert key == json.loads(json.dumps(key))
    assert shards.folder_for(key).parent == tmp_path / "shards"
    others = [
        shards.key(corpus, tokenizer, 0.2, PLAIN),
        shards.key(corpus, tokenizer, 0.1, FRAMED),
    ]
    make_corpus(tmp_path / "in.txt", ["a b", "e", "c"])
    others.append(shards.key(corpus, tokenizer, 0.1, PLAIN))
    assert len({shards.folder_for(k) for k in [key, *others]}) == 4


def test_too_little_text(tmp_path, tokenizer):
    corpus = make_corpus(tmp_path / "in.txt", ["a b"])
    with pytest.raises(UserError, match=r"split is empty.*data\.heldout_fraction=0.01"):
        write(corpus, tokenizer, tmp_path / "out", PLAIN, heldout_fraction=0.01)
    with pytest.raises(UserError, match=r"heldout_fraction=0\.0 "):
        write(corpus, tokenizer, tmp_path / "out", PLAIN, heldout_fraction=0.0)
    with pytest.raises(UserError, match="no finished shards"):
        shards.open_shards(tmp_path / "out", "train")
    nothing = make_corpus(tmp_path / "empty.txt", [])
    with pytest.raises(UserError, match="empty"):
        write(nothing, tokenizer, tmp_path / "nothing", PLAIN)


def test_copies_and_skipped_documents_are_counted(tmp_path, tokenizer):
    texts = ["a", "b", "a", "c", "a", "\u200b", "e"]
    lines = "\n".join(json.dumps({"text": text}) for text in [*texts, "", None])
    (tmp_path / "in.jsonl").write_text(lines)
    corpus = corpora.Corpus(str(tmp_path / "in.jsonl"), "text", "blank_line")
    write(corpus, tokenizer, tmp_path / "out", PLAIN, heldout_fraction=0.5)
    counts = shards.read_counts(tmp_path / "out")
    assert (counts["copies"], counts["empty"]) == (2, 2)
    both = [counts[split] for split in shards.SPLITS]
    assert sum(count["skipped"] for count in both) == 1
    assert sum(count["documents"] for count in both) == 6


def test_copies_of_many_documents_are_estimated(monkeypatch):
    monkeypatch.setattr(shards, "REMEMBERED_DOCUMENTS", 1_000)
    copies = shards.Copies()
    for number in range(20_000):  # a quarter stand there a second time
        copies.add(f"document {number % 16_000}")
    assert len(copies.times) <= 1_000
    assert abs(copies.count() - 4_000) < 1_000  # 4 standard deviations: 250 each


def test_unknown_pieces_are_reported(tmp_path, tokenizer, heldout_by_name):
    known = make_corpus(tmp_path / "known.txt", ["a b c", "e"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(known, tokenizer, tmp_path / "known", PLAIN)
    unknown = make_corpus(tmp_path / "unknown.txt", ["a ? ?", "e"])
    with pytest.warns(UserWarning, match=r"50\.0% .* are unknown .*: .*=byte_bpe"):
        write(unknown, tokenizer, tmp_path / "unknown", PLAIN)
    # The frame of a document is no text: with it, it would be 4 of 10.
    with pytest.warns(UserWarning, match=r"50\.0% .* are unknown .*: .*=byte_bpe"):
        write(unknown, tokenizer, tmp_path / "framed", FRAMED)


def test_a_text_that_is_mostly_unknown_is_refused(tmp_path, tokenizer, heldout_by_name):
    """Thai without spaces: each line is one word, which no WordPiece knows."""
    thai = ["สวัสดีชาวโลก", "ภาษาไทย", "ประเทศไทยเป็นประเทศ", "e a"]
    corpus = make_corpus(tmp_path / "thai.txt", thai)
    with pytest.raises(UserError, match=r"60\.0% .*, sentencepiece_unigram or char"):
        write(corpus, tokenizer, tmp_path / "thai", FRAMED)


def test_ids_outside_the_vocabulary_are_refused(
    tmp_path, tokenizer, heldout_by_name, monkeypatch
):
    corpus = make_corpus(tmp_path / "in.txt", ["a b", "e"])
    monkeypatch.setattr(
        type(tokenizer), "encode_batch", lambda _, texts: [np.array([15], np.int32)]
    )
    with pytest.raises(UserError, match=r"ids from 15 to 15, .* 15 pieces"):
        write(corpus, tokenizer, tmp_path / "out", PLAIN)


def test_leftovers_of_killed_processes_are_removed(
    tmp_path, tokenizer, heldout_by_name
):
    folder = tmp_path / "out"
    folder.mkdir()
    for name, age in (("old.tmp", 3600), ("new.tmp", 1)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)
    write(make_corpus(tmp_path / "in.txt", ["a", "e"]), tokenizer, folder, PLAIN)
    assert [path.name for path in folder.glob("*.tmp")] == ["new.tmp"]
