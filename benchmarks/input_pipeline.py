"""Speed of the data alone: making batches, and text to shards."""

import resource
import tempfile
import time

import grain
from ml_collections import ConfigDict

from configs import bert_base, bert_mini, gpt_mini
from data import shards, windows
from pretraining import way_of
from pretraining.corpus import prepare

SECONDS = 2.0


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
