"""Raw text -> tokenizer and memory-mapped token shards.

`python prepare.py --config=configs/bert_mini.py` does this alone, for a large corpus;
`train.py` calls the same functions for what is not there yet. Shards are written by
`--processes` on this machine, or with `--ray=ADDRESS` by the machines of a Ray cluster.
These need the checkout, its environment and the folder of the shards (the cache, or
`data.shards`) at the same paths, as a shared file system has them. The text is read by
this process alone, tens of megabytes a second; it hands out chunks of it.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict

import configs
import errors
from data import corpora, shards, tokenizers
from data.corpora import Corpus
from data.shards import THIS_PROCESS, Workers
from data.tokenizers import Tokenizer
from errors import UserError


def main(argv: list[str]) -> int:
    flags = configs.parse(
        argv,
        {},
        {"processes": "Processes that write shards [one a core]."},
        {"ray": "Ray cluster that writes shards instead: auto, HOST:PORT or local."},
        kind="pretraining",
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    count = flags.processes or cores or os.cpu_count() or 1
    started = ray_workers(flags.ray) if flags.ray else process_workers(count)
    with started as workers:
        tokenizer, folder = prepare(flags.config, workers)
    train, heldout = (shards.open_shards(folder, s) for s in ("train", "heldout"))
    print(
        f"{train.num_tokens:,} tokens for training, {heldout.num_tokens:,} held out, "
        f"vocabulary {tokenizer.vocab_size:,}, in {folder}"
    )
    return 0


@contextmanager
def process_workers(count: int) -> Iterator[Workers]:
    """Processes of this machine; with one it is this process.

    Raises:
      UserError: one of them was killed.
    """
    if count == 1:
        yield THIS_PROCESS
        return
    # Not forked: the libraries that are loaded here have threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, initializer=_start_process)
    try:
        yield Workers(count, pool.submit)
    except BrokenProcessPool as error:
        raise UserError(
            f"one of the {count} processes that write shards was killed, which happens "
            "where memory runs out. The finished shards are kept: run again with a "
            f"smaller --processes={count // 2}"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process has one core to itself
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()  # returns also where it was killed
    os._exit(1)


@contextmanager
def ray_workers(address: str) -> Iterator[Workers]:
    """Tasks of a Ray cluster, one a core; "local" starts one of this machine alone.

    Raises:
      UserError: Ray is not installed; there is no cluster; its machines fail.
    """
    try:
        import ray  # the extra "cluster"
    except ImportError as error:
        raise UserError(
            "--ray needs the package ray: install the extra, `uv sync --extra cluster` "
            "or `pip install '.[cluster]'`"
        ) from error
    try:
        ray.init(address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--ray={address}: no Ray cluster answers ({str(error).splitlines()[0]}). "
            "Start one with `ray start --head`, or say --ray=local"
        ) from error
    remote = functools.cache(ray.remote)

    def submit(function: object, *arguments: object, **settings: object) -> Future:
        return remote(function).remote(*arguments, **settings).future()

    try:
        yield Workers(int(ray.cluster_resources()["CPU"]), submit)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise UserError(
            f"a task of the Ray cluster was lost, and its retries as well: {error}. "
            "The finished shards are kept: run the same line again"
        ) from error
    finally:
        ray.shutdown()


def prepare(
    config: ConfigDict, workers: Workers = THIS_PROCESS
) -> tuple[Tokenizer, Path]:
    """The tokenizer of a config and the folder of its shards, made where missing.

    Raises:
      UserError: see `data/corpora.py`, `data/tokenizers.py`, `data/shards.py`.
    """
    # It imports grain, seconds that a process which only writes shards can do without.
    from data import pretraining

    settings = config.data
    corpus = Corpus(settings.corpus, settings.text_field, settings.document_boundary)
    tokenizer = load_or_train_tokenizer(config, corpus)
    objective = config.objective
    framing = pretraining.framing(
        objective.name,
        objective.name == "masked_lm" and objective.next_sentence,
        tokenizer,
    )
    fraction = settings.heldout_fraction
    key = shards.key(corpus, tokenizer, fraction, framing)
    folder = Path(settings.shards) if settings.shards else shards.folder_for(key)
    shards.write_shards(
        corpus,
        tokenizer,
        folder.resolve(),  # tasks elsewhere have other working folders
        heldout_fraction=fraction,
        framing=framing,
        workers=workers,
    )
    return tokenizer, folder


def load_or_train_tokenizer(config: ConfigDict, corpus: Corpus) -> Tokenizer:
    """The one of `data.tokenizer.path` or of `init_from`, else one trained on the text.

    A trained one is cached by the hash of its settings and of the corpus.
    """
    settings = config.data.tokenizer.to_dict()
    path = settings.pop("path")
    if not path and config.init_from:
        configs.read_config(Path(config.init_from))  # a run folder, or says that not
        path = config.init_from
    if path:
        return tokenizers.load(path)
    settings["special_tokens"] = (
        tokenizers.GPT_SPECIAL_TOKENS
        if config.objective.name == "causal_lm"
        else tokenizers.BERT_SPECIAL_TOKENS
    )
    fraction = config.data.heldout_fraction
    key = json.dumps([settings, fraction, corpus.fingerprint()], sort_keys=True)
    digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    folder = corpora.cache_folder() / "tokenizers" / digest
    if folder.is_dir() and any(folder.iterdir()):
        return tokenizers.load(str(folder))
    print(f"training a {settings['algorithm']} tokenizer on {corpus.source}")
    documents = (text for text in corpus if not corpora.is_heldout(text, fraction))
    tokenizer = tokenizers.train(documents, **settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        made = tokenizer.save(Path(partial))
        folder.mkdir(exist_ok=True)
        made.replace(folder / made.name)
    return tokenizer


if __name__ == "__main__":
    errors.run(main)
