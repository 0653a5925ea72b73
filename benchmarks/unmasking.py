"""Filling in many words at once beside writing one after the other: speed and quality.

    python -m benchmarks.unmasking --diffusion=runs/diffusion --causal=runs/causal
        --judge=runs/foreword_causal --input=heldout.txt [--texts=40]

The diffusion and the causal run have one tokenizer. Each goes on from the beginning of
the same texts, a line each, by `--tokens`: from the first words that make `--pieces`
pieces (a text where no number of words does is left out). A third run, from left to
right, judges what they wrote: bits a byte of what follows the beginning, beside those
of what really follows. Low bits alone say little, since dull text has them: "distinct"
is the share of pairs of words that stand nowhere else in all that was written that way.
Speed is that of the median text, compiled before.
"""

import argparse
import itertools
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import use
from use import scoring
from use.run import Run


def beginning(run: Run, text: str, pieces: int) -> str | None:
    """The words of a text that make so many pieces."""
    words = text.split()
    for count in range(1, min(pieces, len(words)) + 1):
        found = " ".join(words[:count])
        if len(run.tokenizer.encode_batch([found])[0]) == pieces:
            return found
    return None


def bits_a_byte(judge: Run, starts: Sequence[str], texts: Sequence[str]) -> float:
    """Of what follows the starts in the texts, as `judge` reads them."""
    places = [f"text {number}" for number in range(2 * len(texts))]
    read = scoring.whole_texts(judge, "causal", [*starts, *texts], places)
    sums = scoring.log_probabilities(judge, "causal", read).sums
    nats = sums[: len(starts)].sum() - sums[len(starts) :].sum()
    written = sum(
        len(text.encode()) - len(start.encode())
        for start, text in zip(starts, texts, strict=True)
    )
    return nats / math.log(2) / written


def distinct(starts: Sequence[str], texts: Sequence[str]) -> float:
    """The share of pairs of words that stand once in all that follows the starts."""
    counts: Counter = Counter()
    for start, text in zip(starts, texts, strict=True):
        counts.update(itertools.pairwise(text[len(start) :].split()))
    return sum(count == 1 for count in counts.values()) / counts.total()


def timed(
    write: Callable[[str], str], starts: Sequence[str]
) -> tuple[list[str], float]:
    """What is written, and the seconds of the median text."""
    write(starts[0])
    texts, seconds = [], []
    for start in starts:
        before = time.perf_counter()
        texts.append(write(start))
        seconds.append(time.perf_counter() - before)
    return texts, statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("diffusion", "causal", "judge", "input"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--texts", type=int, default=40)
    parser.add_argument("--pieces", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--parallel", default="1,2,4,8,16,32,64")
    given = parser.parse_args()
    fills_in, writes, judge = map(
        use.open_run, (given.diffusion, given.causal, given.judge)
    )
    lines = [line.strip() for line in Path(given.input).read_text().splitlines()]
    real = {beginning(writes, line, given.pieces): line for line in lines if line}
    real.pop(None, None)
    long = {
        start: " ".join(text.split()[: len(start.split()) + given.tokens // 2])
        for start, text in itertools.islice(real.items(), given.texts)
    }
    starts = [*long]
    ways: list[tuple[str, Run, int | None]] = [("one after the other", writes, None)]
    counts = (int(count) for count in given.parallel.split(","))
    ways += [(f"{count} at once", fills_in, count) for count in counts]
    print(f"{len(starts)} texts, {given.pieces} pieces and {given.tokens} after them")
    print("| way | tokens a second | bits a byte | distinct |\n|---|---|---|---|")
    followed = [" ".join(long[start].split()) for start in starts]
    bits, share = bits_a_byte(judge, starts, followed), distinct(starts, followed)
    print(f"| what really follows | | {bits:.2f} | {share:.2f} |")
    for name, run, parallel in ways:

        def write(start: str, run: Run = run, parallel: int | None = parallel) -> str:
            (text,) = use.generate(
                run,
                start,
                max_tokens=given.tokens,
                parallel=parallel,
                temperature=given.temperature,
            )
            return start + text

        texts, seconds = timed(write, starts)
        bits, share = bits_a_byte(judge, starts, texts), distinct(starts, texts)
        speed = f"{given.tokens / seconds:,.0f}"
        print(f"| {name} | {speed} | {bits:.2f} | {share:.2f} |", flush=True)


if __name__ == "__main__":
    main()
