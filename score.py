"""Scores a run without training it; each number with its standard error.

    python score.py pairs      --workdir=runs/gpt_mini --input=blimp/
        [--as=causal|masked] [--within_word] [--output=pairs.json]
    python score.py perplexity --workdir=runs/gpt_mini --input=text.txt [--stride=64]
    python score.py task       --workdir=runs/gpt_mini --input=reviews.tsv
        --spec=configs/score/sst2.json [--shots=4 --examples=train.tsv]
    python score.py task       --workdir=runs/topic --input=new.tsv
    python score.py lm_eval    --workdir=runs/gpt_mini --tasks=blimp [--limit=100]

pairs: which sentence of a minimal pair is likelier. perplexity: of any text that could
be trained on. task: by the likelihood of each label's words, or, of a fine-tuned run,
the metrics of its task on another labelled file. lm_eval: the tasks of EleutherAI's
lm-eval (the extra eval).
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import errors
from data.corpora import BOUNDARIES, Corpus

WAYS = ("causal", "masked")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="score.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    pairs = commands.add_parser("pairs", help="minimal pairs of sentences")
    perplexity = commands.add_parser("perplexity", help="of a text")
    task = commands.add_parser("task", help="labelled texts")
    lm_eval = commands.add_parser("lm_eval", help="tasks of EleutherAI's lm-eval")
    for command in (pairs, perplexity, task, lm_eval):
        command.add_argument("--workdir", required=True, help="a run")
        command.add_argument("--output", help="a file for the numbers, as JSON")
        command.add_argument(
            "--as",
            dest="way",
            choices=WAYS,
            help="by the words before, or by those on both sides [what the run can]",
        )
        command.add_argument(
            "--within_word",
            action="store_true",
            help="masked: hides the later pieces of a word, too",
        )
    for command, text in (
        (pairs, "a file of pairs, or a folder of them, a paradigm each"),
        (perplexity, "what data.corpus may be: files, a glob, tfds:NAME"),
        (task, "a labelled file, or tfds:NAME@SPLIT"),
    ):
        command.add_argument("--input", required=True, help=text)
    pairs.add_argument(
        "--no_counts",
        action="store_true",
        help="without the line of five pieces' counts, which reads the run's text",
    )
    perplexity.add_argument(
        "--stride", type=int, help="tokens that the window advances by [half of it]"
    )
    perplexity.add_argument(
        "--text_field", default="text", help="of files with columns [%(default)s]"
    )
    perplexity.add_argument(
        "--document_boundary",
        choices=BOUNDARIES,
        default=BOUNDARIES[0],
        help="of files of text [%(default)s]",
    )
    task.add_argument("--spec", help="labels and templates; configs/score/ has some")
    task.add_argument("--examples", help="a labelled file that examples come from")
    lm_eval.add_argument("--tasks", required=True, help="their names, with commas")
    lm_eval.add_argument("--include_path", help="a folder of tasks of your own")
    lm_eval.add_argument("--limit", type=int, help="records of each task [all]")
    task.add_argument(
        "--shots", type=int, default=0, help="examples before a text [%(default)s]"
    )
    lm_eval.add_argument(
        "--shots", type=int, help="examples before a text [as the task says]"
    )
    task.add_argument(
        "--seed", type=int, default=0, help="of their choice [%(default)s]"
    )
    return parser.parse_args(argv)


def read_arguments(argv: list[str]) -> argparse.Namespace:
    return parse_arguments(argv[1:])


if __name__ == "__main__":  # mistakes in flags and --help need no jax
    errors.check(read_arguments)

from rich.console import Console
from rich.table import Table

import use
from data import cache, labelled, pairs
from errors import UserError
from use import Run, minimal_pairs, prompts, scoring
from use.measured import Measured

LINE = f"{minimal_pairs.ORDER}-gram"  # which the pairs' results stand beside


def main(argv: list[str]) -> int:
    found = score(read_arguments(argv))
    show(found)
    return 0


def score(arguments: argparse.Namespace | Sequence[str]) -> dict[str, Measured]:
    """Does what a command line says, and writes the JSON that it asks for.

    Args:
        arguments: words, such as ["pairs", "--workdir=RUN", "--input=FILE"], or these
            parsed.

    Returns:
        The numbers by name: "accuracy", "accuracy/PARADIGM", "bits_per_byte", ...

    Raises:
        UserError: an input that cannot be read, with the line, or that does not fit the
            run.
    """
    if not isinstance(arguments, argparse.Namespace):
        arguments = parse_arguments([*arguments])
    errors.check_output(arguments.output)
    run = use.open_run(arguments.workdir)
    found = COMMANDS[arguments.command](run, arguments)
    if arguments.output is not None:
        write(found, Path(arguments.output), arguments)
    return found


# Commands.


def pairs_command(run: Run, arguments: argparse.Namespace) -> dict[str, Measured]:
    way = way_asked(run, arguments)
    paradigms = pairs.read(arguments.input)
    found = use.score_pairs(run, paradigms, way, arguments.within_word)
    if arguments.no_counts:
        return found
    model = minimal_pairs.count_text(run)
    if isinstance(model, str):
        print(f"no {LINE} line: {model}", file=sys.stderr)
        return found
    line = minimal_pairs.score_by_counts(run, paradigms, model)
    return found | {f"{LINE}/{name}": value for name, value in line.items()}


def perplexity_command(run: Run, arguments: argparse.Namespace) -> dict[str, Measured]:
    way = way_asked(run, arguments)
    corpus = Corpus(arguments.input, arguments.text_field, arguments.document_boundary)
    return use.perplexity(run, corpus, way, arguments.stride, arguments.within_word)


def task_command(run: Run, arguments: argparse.Namespace) -> dict[str, Measured]:
    if run.task is not None and arguments.spec is None:
        for flag in ("examples", "shots", "way", "within_word"):
            if getattr(arguments, flag):
                name = "as" if flag == "way" else flag
                raise UserError(
                    f"--{name} goes with --spec, and {arguments.workdir} was "
                    f"fine-tuned for {run.task.kind}: remove it"
                )
        return use.measure(run, labelled.read(arguments.input))
    way = way_asked(run, arguments)
    if arguments.spec is None:
        raise UserError(
            f"--spec is missing: {arguments.workdir} was not fine-tuned, so what the "
            "labels are called must be said; configs/score/ has examples"
        )
    examples = labelled.read(arguments.examples) if arguments.examples else []
    return use.score_task(
        run,
        prompts.read_spec(arguments.spec),
        labelled.read(arguments.input),
        way,
        examples=examples,
        shots=arguments.shots,
        seed=arguments.seed,
        within_word=arguments.within_word,
    )


def lm_eval_command(run: Run, arguments: argparse.Namespace) -> dict[str, Measured]:
    way = way_asked(run, arguments)
    try:
        from use import lm_evaluation
    except ImportError as error:
        raise UserError(
            f"lm_eval needs the extra eval ({error}): uv run --extra eval score.py "
            "..., or pip install -e .[eval]"
        ) from error
    return lm_evaluation.evaluate(
        run,
        way,
        arguments.tasks.split(","),
        within_word=arguments.within_word,
        include_path=arguments.include_path,
        shots=arguments.shots,
        limit=arguments.limit,
    )


COMMANDS = {
    "pairs": pairs_command,
    "perplexity": perplexity_command,
    "task": task_command,
    "lm_eval": lm_eval_command,
}


def way_asked(run: Run, arguments: argparse.Namespace) -> str:
    way = scoring.way_of(run, arguments.way)
    if arguments.within_word and not scoring.WAYS[way].sees_both:
        raise UserError(
            f"--within_word is for masked models, but {arguments.workdir} is scored by "
            "the words before: remove it"
        )
    return way


# Numbers out.


def show(found: dict[str, Measured]) -> None:
    """A row a number, those of the line to beat beside."""
    beside = {
        name.removeprefix(f"{LINE}/"): number
        for name, number in found.items()
        if name.startswith(f"{LINE}/")
    }
    table = Table()
    table.add_column("", overflow="fold")
    for title in ("value", "error", "95 %", "of", *([LINE] if beside else [])):
        table.add_column(title, justify="right", no_wrap=True)
    for name, number in found.items():
        if name.startswith(f"{LINE}/"):
            continue
        cells = [
            f"{number.value:.4f}",
            f"{number.error:.4f}",
            f"{number.low:.3f} to {number.high:.3f}",
            f"{number.count:,}",
        ]
        table.add_row(name, *cells, *([f"{beside[name].value:.4f}"] if beside else []))
    Console().print(table)


def write(
    found: dict[str, Measured], path: Path, arguments: argparse.Namespace
) -> None:
    """JSON: what was scored how, and the numbers; NaN, of one thing alone, is null."""
    numbers = {
        name: {
            key: None if math.isnan(part) else part
            for key, part in value._asdict().items()
        }
        for name, value in found.items()
    }
    report = {"arguments": vars(arguments), "results": numbers}
    cache.write_whole(path, (json.dumps(report, indent=2) + "\n").encode())


if __name__ == "__main__":
    errors.run(main)
