"""Minimal pairs of a run beside plain forward passes over the same tokens.

    python -m benchmarks.scoring --workdir=runs/gpt_mini --input=blimp/ [--pairs=100]

"Scored" is everything from the texts of the pairs to the accuracies. "Plain" are model,
logits and log-probabilities of as many tokens, laid out beforehand in rows without
padding, with as many of them predicted. The two take turns; the first turn compiles.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

import models
import use
from data import pairs
from use import minimal_pairs, scoring
from use.minimal_pairs import Paradigms
from use.run import Run


def plain_passes(
    run: Run, way: str, paradigms: Paradigms
) -> tuple[Callable[[], None], int, float]:
    """() -> one pass over the tokens of all sequences, how many tokens there are, and
    the share of the scored rows that they fill."""
    texts = minimal_pairs.sentences(run, paradigms, way)
    order = {(x.tokens.tobytes(), x.first): x for x in texts}.values()
    ordered = sorted(order, key=lambda text: -len(text.tokens))
    shape, tokens, predicted, room = None, [], 0, 0
    for _, examples in scoring.chunks(run, way, ordered, False):
        if shape is None:
            shape = scoring.make_shape(run, way, ordered, examples)
        tokens += [example.arrays["tokens"] for example in examples.encoded]
        predicted += sum(x.arrays["weights"].sum() for x in examples.encoded)
        batches = scoring.packing.evaluation_batches(examples, shape)
        room += len(batches) * shape.rows * shape.length
    stream = np.concatenate(tokens)
    size = shape.rows * shape.length
    stream = stream[: len(stream) // size * size].reshape(-1, shape.rows, shape.length)
    count = max(1, round(shape.length * float(predicted) / np.concatenate(tokens).size))
    places = np.linspace(0, shape.length - 1, count).astype(np.int32)
    places = np.tile(places, (shape.rows, 1))
    model = models.build(scoring.fields_for(run, scoring.WAYS[way]))
    never = scoring.never_meant(run)

    def go() -> None:
        found = []
        for rows in stream:
            batch = {"tokens": rows, "segment_ids": np.ones_like(rows)}
            batch["positions"] = np.tile(np.arange(rows.shape[1]) % 32, (len(rows), 1))
            if scoring.WAYS[way].sees_both:
                batch["predict_positions"] = places
            read = {name: batch[name] for name in model.inputs if name in batch}
            counted = {"predict_positions": places}
            counted["targets"] = np.take_along_axis(rows, places, axis=1)
            output = scoring.WAYS[way].output
            found.append(
                scoring.word_scores(model, run.params, read, counted, never, output)
            )
        jax.block_until_ready(found)

    return go, stream.size, np.concatenate(tokens).size / room


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and of all cores."""
    before, cores = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - before, time.process_time() - cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--input", required=True)
    parser.add_argument("--pairs", type=int, default=100, help="of each paradigm")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    run = use.open_run(arguments.workdir)
    way = scoring.way_of(run)
    paradigms = {
        name: [*itertools.islice(found, arguments.pairs)]
        for name, found in pairs.read(arguments.input).items()
    }
    plain, tokens, filled = plain_passes(run, way, paradigms)
    turns = []
    for _ in range(arguments.rounds + 1):
        scored = seconds(lambda: use.score_pairs(run, paradigms, way))
        turns.append((scored, seconds(plain)))
    turns = turns[1:]
    whole = sum(len(found) for found in paradigms.values())
    print(f"{way}: {whole:,} pairs, {tokens:,} tokens, {filled:.1%} of the rows' room")
    for name, which in (("clock", 0), ("all cores", 1)):
        ratios = sorted(scored[which] / plain[which] for scored, plain in turns)
        middle = (
            statistics.median(turn[kind][which] for turn in turns) for kind in (0, 1)
        )
        told = " and ".join(f"{value:.2f}" for value in middle)
        print(
            f"{name}: scored and plain {told} s; ratio {statistics.median(ratios):.2f} "
            f"({', '.join(f'{ratio:.2f}' for ratio in ratios)})"
        )


if __name__ == "__main__":
    main()
