"""Speed of the data alone: making batches, and text to shards."""

import resource
import tempfile
import time

import grain
from ml_collections import ConfigDict

from data import shards, windows
from pretraining import way_of
from pretraining.corpus import prepare

SECONDS = 3.0


def batches_per_second(config: ConfigDict) -> tuple[float, float]:
    """(tokens a second of batches made ahead, share of them that is no padding)."""
    tokenizer, folder = prepare(config)
    examples = way_of(config.objective.name).examples(
        config.objective,
        shards.open_shards(folder, "train"),
        tokenizer,
        config.data.sequence_length,
    )
    batches = windows.training_batches(
        examples, batch_size=config.data.batch_size, seed=config.seed
    )
    threads = config.run.data_threads
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    made = iter(batches.to_iter_dataset(options))
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
