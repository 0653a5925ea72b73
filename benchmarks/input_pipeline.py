"""Speed of the data alone: making batches, and text to shards; what memory these need.

    python -m benchmarks.input_pipeline [--megabytes=100,1000] [--processes=2]

prepares made-up texts of these sizes: memory must not grow with them. The speeds are
measured by `python -m benchmarks.pretraining --sections=input`.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grain
import numpy as np
from ml_collections import ConfigDict

from configs import bert_base, bert_mini, gpt_mini
from data import shards, windows
from pretraining import way_of
from pretraining.corpus import prepare

SECONDS = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--megabytes", default="100,1000")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    print("| text, MB | documents | peak of the largest process, MB | seconds |")
    print("|---|---|---|---|")
    for size in map(int, arguments.megabytes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            documents = write_text(Path(folder) / "text.txt", size)
            peak, seconds = prepare_apart(Path(folder), arguments.processes)
        print(
            f"| {size:,} | {documents:,} | {peak:,.0f} | {seconds:,.0f} |", flush=True
        )


def write_text(path: Path, megabytes: int) -> int:
    """Documents of 1 to 400 lines of words that are as frequent as words are (Zipf);
    returns how many."""
    generator, documents = np.random.default_rng(0), 0
    letters = generator.integers(ord("a"), ord("z") + 1, (50_000, 12), np.uint8)
    sizes = generator.integers(1, 13, len(letters))
    words = [row[:size].tobytes() for row, size in zip(letters, sizes, strict=True)]
    shares = 1 / np.arange(10, 10 + len(words))
    edges = np.cumsum(shares / shares.sum())
    with path.open("wb") as file:
        while file.tell() < megabytes * 1_000_000:
            drawn = np.searchsorted(edges[:-1], generator.random(12 * 400)).tolist()
            lines = int(400 ** generator.random())
            for start in range(0, 12 * lines, 12):
                file.write(b" ".join(words[i] for i in drawn[start : start + 12]))
                file.write(b"\n")
            file.write(b"\n")
            documents += 1
    return documents


def prepare_apart(folder: Path, processes: int) -> tuple[float, float]:
    """(MB, seconds) that prepare.py takes for a text, in processes of its own."""
    line = [sys.executable, "prepare.py", "--config=configs/bert_mini.py"]
    line += [f"--config.data.corpus={folder / 'text.txt'}", f"--processes={processes}"]
    began = time.perf_counter()
    subprocess.run(
        line,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"FOREWORD_CACHE": str(folder / "cache")},
    )
    # Of all that have been waited for: a later text counts where it needs more.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
    return peak, time.perf_counter() - began


def ways(variant: str) -> dict[str, ConfigDict]:
    """The ways to pre-train, in rows of 128 of the embedded corpus."""
    found = {"causal": gpt_mini.get_config(variant)}
    for name, way, whole_word in (
        ("masked", "masked_lm", False),
        ("whole words", "masked_lm", True),
        ("next sentence", "next_sentence", False),
    ):
        found[name] = bert_mini.get_config(variant)
        found[name].objective = bert_base.get_config().objective
        found[name].objective.update(name=way, whole_word=whole_word)
    for config in found.values():
        config.data.update(sequence_length=128, batch_size=64)
    return found


def open_batches(config: ConfigDict) -> grain.MapDataset:
    tokenizer, folder = prepare(config)
    examples_of = way_of(config.objective.name).examples(
        config.objective, tokenizer, config.data.sequence_length
    )
    return windows.training_batches(
        examples_of(shards.open_shards(folder, "train")),
        batch_size=config.data.batch_size,
        seed=config.seed,
    )


def rows_per_core_second(config: ConfigDict) -> float:
    """Rows of batches made one after the other, by the time that cores take for it."""
    batches = open_batches(config)
    steps, before, began = 0, cpu_seconds(), time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        batches[steps]
        steps += 1
    return steps * config.data.batch_size / (cpu_seconds() - before)


def batches_per_second(config: ConfigDict) -> tuple[float, float]:
    """(tokens a second of batches made ahead, share of them that is no padding)."""
    threads = config.run.data_threads
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    made = iter(open_batches(config).to_iter_dataset(options))
    next(made)
    tokens, useful, began = 0, 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        segment_ids = next(made)["segment_ids"]
        tokens += segment_ids.size
        useful += int((segment_ids > 0).sum())
    return tokens / (time.perf_counter() - began), useful / tokens


def megabytes_per_core_second(config: ConfigDict) -> float:
    """UTF-8 text to shards, by the time that all cores together take for it."""
    prepare(config)  # the tokenizer, which is trained once
    with tempfile.TemporaryDirectory() as folder:
        config = config.copy_and_resolve_references()
        config.data.shards = f"{folder}/shards"
        before = cpu_seconds()
        _, written = prepare(config)
        seconds = cpu_seconds() - before
        splits = [shards.open_shards(written, split) for split in shards.SPLITS]
        return sum(split.text_bytes for split in splits) / 1e6 / seconds


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
