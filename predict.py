"""Uses a run: continues text, fills in masked words, does the task it was tuned for.

    python predict.py generate   --workdir=runs/gpt_mini  --prompt="Returns a list"
    python predict.py fill_mask  --workdir=runs/bert_mini --text="The [MASK] of a list"

    python predict.py classify   --workdir=runs/topic --input=new.txt --output=new.jsonl
        --format=jsonl
    python predict.py similarity --workdir=runs/sts --text="A dog." --text_b="A cat."
    python predict.py tag        --workdir=runs/names < sentences.txt
    python predict.py answer     --workdir=runs/squad --question="Who?" --text="Ada."
    python predict.py choose     --workdir=runs/quiz --text="It rained." --answers="dry"
        --answers="wet"
    python predict.py embed      --workdir=runs/bert_mini --input=new.txt
        --output=new.npy
    python predict.py inspect    --workdir=runs/bert_mini --text="The end of a list"
        --output=page.html
    python predict.py classify   --workdir=runs/glue_rte --input=tfds:glue/rte@test
        --format=glue --output=submission/

Texts come from --text, from the file of --input or from stdin. A labelled file (.tsv,
.csv, .jsonl, .parquet, .conll, SQuAD's .json) or tfds:NAME@SPLIT has the columns of the
run's task; the labels are not needed, and shown beside ("gold") where they are there.
Anything else is text, a record a line, its parts apart by tabs: the text or the two of
a pair; the words of a sentence, apart by spaces; question, context; context, question
(if the task has one), answers.
"""

import argparse
from typing import Any

import errors
from tasks import KINDS
from tasks.record import COLUMNS, FLAGS, Kind


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="predict.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    generation = commands.add_parser("generate", help="continue a text (GPT)")
    generation.add_argument("--prompt", default="", help="the text to continue [none]")
    generation.add_argument(
        "--max_tokens",
        type=int,
        help="at most so many; of a text longer than the model's positions it reads "
        "the end [100, or fewer, as they fit the model]",
    )
    generation.add_argument(
        "--parallel", type=int, help="words filled in at once (masked diffusion) [1]"
    )
    for name, kind, value, text in (
        ("samples", int, 1, "so many continuations"),
        (
            "temperature",
            float,
            0.8,
            "below 1 draws likely tokens more often; 0: greedy",
        ),
        ("top_k", int, 0, "draws among so many tokens; 0: all"),
        ("top_p", float, 1.0, "draws among those with this share; 1: all"),
        ("seed", int, 0, "of what is drawn"),
    ):
        generation.add_argument(
            f"--{name}", type=kind, default=value, help=f"{text} [%(default)s]"
        )

    filling = commands.add_parser("fill_mask", help="fill in [MASK] (BERT)")
    filling.add_argument(
        "--top", type=int, default=5, help="candidates shown [%(default)s]"
    )

    tuned = [add_task_command(commands, kind) for kind in KINDS.values()]

    embedding = commands.add_parser(
        "embed",
        help="a vector for each text",
        description="The hidden states of each text, pooled to one vector or token by "
        "token: a JSON object a line, {place, embedding} and, token by token, pieces. "
        "The end of --output chooses another form: .npy, one float32 array [texts, "
        "width] in the order of the texts; .npz, an array a text, 0, 1, ..., and their "
        "places; .parquet, a row a text. What is longer than the model's positions is "
        "cut.",
    )
    embedding.add_argument(
        "--pooling",
        choices=("mean", "first", "last", "none"),
        default="mean",
        help="over all tokens of the text, [CLS] and the like included; the first or "
        "last token's; or none, a vector for each of its pieces [%(default)s]",
    )
    embedding.add_argument(
        "--layer",
        default="last",
        help="last, all, a number (0: the embedded tokens), or mix, as a run with "
        "head.layers=mix has learnt it [%(default)s]",
    )
    embedding.add_argument(
        "--neighbours",
        type=int,
        default=0,
        metavar="K",
        help="instead of vectors the K nearest other texts of each",
    )
    embedding.add_argument(
        "--column", default="text", help="of a labelled file [%(default)s]"
    )

    inspecting = commands.add_parser(
        "inspect",
        help="a page to look at: attention, expected words, layers",
        description="What the model makes of one text: attention by layer and head, "
        "the words that it expects at each place, the mix of layers that a task has "
        "learnt. One HTML file that needs nothing else, or a PNG, or JSON, by the end "
        "of --output.",
    )
    inspecting.add_argument("--text", required=True, help="one text")
    inspecting.add_argument("--output", required=True, help="NAME.html, .png or .json")

    for command in (embedding, inspecting):
        command.add_argument("--workdir", required=True, help="any run")
    for command in (generation, filling):
        command.add_argument("--workdir", required=True, help="a run of train.py")
    for command in (*tuned, embedding):
        command.add_argument("--output", help="a file; without it, stdout")
    for command in (filling, *tuned, embedding):
        source = command.add_mutually_exclusive_group()
        source.add_argument("--text", help="one text; without it, those of --input")
        source.add_argument("--input", help="a file or tfds:NAME@SPLIT; or else stdin")
        command.add_argument(
            "--skip_blank",
            action="store_true",
            help="pass over blank lines of a file of texts, of which else an empty "
            "result is written",
        )
    return parser.parse_args(argv)


TASK_FLAGS = {
    "text_b": {"help": "the second text of a pair"},
    "question": {"help": "what is asked, if the task has questions"},
    "answers": {"action": "append", "help": "an answer; for each again"},
}


def add_task_command(commands: Any, kind: Kind) -> argparse.ArgumentParser:
    """The command of a kind of task."""
    command = commands.add_parser(kind.command, help=kind.help)
    for name in (*kind.columns, "label_column"):
        several = ", A,B if several" if name in kind.columns else ""
        command.add_argument(
            f"--{name}", help=f"of a labelled file{several} [the run's task.{name}]"
        )
    for part in kind.line:
        for flag in FLAGS[part]:
            if flag in TASK_FLAGS:
                command.add_argument(f"--{flag}", **TASK_FLAGS[flag])
    command.add_argument(
        "--format",
        choices=["table", "jsonl", "glue"],
        default="table",
        help="a table cuts long texts; glue is for GLUE's server [%(default)s]",
    )
    command.add_argument("--workdir", required=True, help="a run of finetune.py")
    return command


if __name__ == "__main__":  # mistakes in flags and --help need no jax
    errors.check(lambda argv: parse_arguments(argv[1:]))

import contextlib
import dataclasses
import json
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data import cache, inputs, labelled
from data.labelled import Record
from errors import UserError
from tasks import glue, lines, predictions
from tasks.encoding import Task
from use import Run, embed, fill_mask, generate, open_run, predict
from use.embedding import Embedded, neighbours, width
from use.inspection import inspect, page, picture
from use.labelling import gold_report


def main(argv: list[str]) -> int:
    arguments = parse_arguments(argv[1:])
    run = open_run(arguments.workdir)
    run.check(arguments.command)
    commands = dict.fromkeys((kind.command for kind in KINDS.values()), task_command)
    commands |= {"generate": generate_command, "fill_mask": fill_mask_command}
    commands |= {"embed": embed_command, "inspect": inspect_command}
    commands[arguments.command](run, arguments)
    return 0


# Lines out.


def write(lines: Iterable[str], output: str | None) -> None:
    if output is None:
        for line in lines:
            print(line)
        return
    with cache.new_file(Path(output)) as file:
        for line in lines:
            file.write(line.encode() + b"\n")


# Commands.


def generate_command(run: Run, arguments: argparse.Namespace) -> None:
    texts = generate(
        run,
        arguments.prompt,
        max_tokens=arguments.max_tokens,
        parallel=arguments.parallel,
        samples=arguments.samples,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    for text in texts:
        print(arguments.prompt + text)
        if arguments.samples > 1:
            print("-" * 40)


def fill_mask_command(run: Run, arguments: argparse.Namespace) -> None:
    texts = [("--text", arguments.text)]
    if arguments.text is None:
        texts = inputs.read_lines(arguments.input, arguments.skip_blank)
    for place, text in texts:
        if not text and place != "--text":
            print()
            continue
        found = fill_mask(run, text, arguments.top)
        print(text)
        for number, candidates in enumerate(found, 1):
            name = f"[MASK] {number}" if len(found) > 1 else "[MASK]"
            words = (f"{word} {share:.3f}" for word, share in candidates)
            print(f"  {name}: " + "   ".join(words))


def task_command(run: Run, arguments: argparse.Namespace) -> None:
    """classify, similarity, tag, answer and choose."""
    kind, labels, task = run.kind, run.labels, asked_task(run, arguments)
    output, glue_name = arguments.output, ""
    if arguments.format == "glue":
        glue_name = glue_task(run)
        output = glue_output(output, glue_name, arguments.input)
    errors.check_output(output)
    known: list[tuple[Record, dict[str, Any]]] = []
    predicted = noted(predict(run, records_of(run, arguments, task), task), known)
    if arguments.format == "glue":
        write(glue.lines(glue_name, labels, predicted), output)
    elif arguments.format == "jsonl":
        write(predictions.json_lines(predicted), output)
    else:
        write(predictions.table(kind, task, labels, predicted), output)
    if known:
        print(gold_report(run, known, task), file=sys.stderr)


def noted(
    predicted: predictions.Predicted, known: list[tuple[Record, dict[str, Any]]]
) -> predictions.Predicted:
    """The same; those of records with a label are kept."""
    for record, prediction in predicted:
        if "gold" in prediction:
            known.append((record, prediction))
        yield record, prediction


def asked_task(run: Run, arguments: argparse.Namespace) -> Task:
    """The run's task, with the columns that flags name, or as lines have it.

    Raises:
      UserError: columns of what has none, or another number of them than the task's.
    """
    flags = vars(arguments)
    given = {
        name: flags[name]
        for name in (*run.kind.columns, "label_column")
        if flags[name] is not None
    }
    if not inputs.is_labelled(arguments.input):
        if given:
            raise UserError(
                f"--{next(iter(given))} is for a labelled --input "
                f"({' '.join(labelled.SUFFIXES)}), whose columns have names: remove it"
            )
        return lines.line_task(run.kind, run.task)
    columns = {name: (*given[name].split(","),) for name in given if name in COLUMNS}
    for name, found in columns.items():
        before = getattr(run.task, name)
        # Answers are one column with a list, or a column for each.
        if len(found) != len(before) and name != "answer_columns":
            raise UserError(
                f"--{name}={given[name]} names {len(found)} column(s), but the run's "
                f"task has {len(before)} ({', '.join(before) or 'none'})"
            )
    return dataclasses.replace(run.task, **given | columns)


def records_of(run: Run, arguments: argparse.Namespace, task: Task) -> Iterator[Record]:
    """The record of `--text` and the flags beside it, or those of `--input` or stdin.

    Raises:
      UserError: flags that do not go together; see `lines.read_records`.
    """
    flags = vars(arguments)
    given = {
        name: flags[name]
        for name in ("text", *TASK_FLAGS)
        if name in flags and flags[name] is not None
    }
    if not given:
        yield from lines.read_records(
            arguments.input,
            run.kind,
            task,
            run.labels,
            skip_blank=arguments.skip_blank,
            wants_labels=arguments.label_column is not None,
        )
        return
    if "text" not in given:
        raise UserError(f"--{next(iter(given))} goes with --text, which is missing")
    if ("question" in given) != bool(task.question_columns):
        raise UserError(
            "--question is missing: the run's task has questions"
            if task.question_columns
            else "--question is given, but the run's task has none: remove it"
        )
    texts = lines.flag_texts(given, run.kind)
    yield lines.line_record(texts, run.kind, task, run.labels, "--text")


def glue_task(run: Run) -> str:
    """The name of the GLUE task of a run of configs/finetune/glue.py."""
    name = run.config.name.removeprefix("glue_").split("_")[0]
    if not run.config.name.startswith("glue_") or name not in glue.FILES:
        raise UserError(
            f"--format=glue is for runs of configs/finetune/glue.py, but {run.folder} "
            f"has config.name={run.config.name!r}: use --format=jsonl"
        )
    return name


def glue_output(output: str | None, name: str, source: str | None) -> str | None:
    """In a folder the file gets the name that GLUE wants."""
    if output is None or not (output.endswith("/") or Path(output).is_dir()):
        return output
    Path(output).mkdir(parents=True, exist_ok=True)
    file, _ = glue.FILES[name]
    if name == "mnli" and "mismatched" in (source or ""):
        file = "MNLI-mm.tsv"
    return str(Path(output) / file)


def embed_command(run: Run, arguments: argparse.Namespace) -> None:
    output, is_pooled = arguments.output, arguments.pooling != "none"
    errors.check_output(output)
    if arguments.text is not None and not arguments.text.strip():
        raise UserError("--text has no text: write one")
    texts: Iterable[tuple[str, str]] = [("--text", arguments.text)]
    if arguments.text is None:
        texts = inputs.read_texts(
            arguments.input, arguments.column, arguments.skip_blank
        )
    if arguments.neighbours:
        if not is_pooled or arguments.layer == "all":
            raise UserError("--neighbours needs one vector a text: --pooling, --layer")
        write(neighbour_lines(run, texts, arguments), output)
        return
    embedded = embed(run, texts, arguments.pooling, arguments.layer)
    suffix = Path(output or "").suffix
    if suffix == ".npy":
        if not is_pooled:
            raise UserError(f"--output={output}: texts differ in length; write .npz")
        write_npy(embedded, width(run), output)
    elif suffix == ".npz":
        write_npz(embedded, output)
    elif suffix == ".parquet":
        write_parquet(embedded, output)
    else:
        write((json.dumps(described(one, is_pooled)) for one in embedded), output)


def inspect_command(run: Run, arguments: argparse.Namespace) -> None:
    errors.check_output(arguments.output)
    target, forms = Path(arguments.output), (".html", ".png", ".json")
    if target.suffix not in forms:
        raise UserError(f"--output={target}: its name must end in {' or '.join(forms)}")
    found = inspect(run, arguments.text)
    with cache.new_file(target) as file:
        if target.suffix == ".png":
            picture(found, file)
        else:
            text = page(found) if target.suffix == ".html" else json.dumps(found)
            file.write(text.encode())
    print(f"{target}: open it in a browser" if target.suffix == ".html" else target)


def described(embedded: Embedded, is_pooled: bool) -> dict[str, Any]:
    vectors = embedded.vectors
    is_blank = not embedded.pieces
    pieces = {} if is_pooled else {"pieces": embedded.pieces}
    found = None if is_blank else vectors.tolist()
    return {"place": embedded.place, **pieces, "embedding": found}


def neighbour_lines(
    run: Run, texts: Iterable[tuple[str, str]], arguments: argparse.Namespace
) -> Iterator[str]:
    """Each text, and indented below it the nearest others."""
    given = [*texts]
    found = embed(run, given, arguments.pooling, arguments.layer)
    vectors = np.array([one.vectors for one in found], np.float32)
    if len(vectors) < 2:
        raise UserError("--neighbours: there is one text; give more, by --input")
    nearest, nearness = neighbours(vectors, arguments.neighbours)
    for (_, text), others, values in zip(given, nearest, nearness, strict=True):
        yield text
        for other, value in zip(others.tolist(), values.tolist(), strict=True):
            if value > -np.inf:  # else one of them has no text
                yield f"  {value:6.3f}  {given[other][1]}"


def write_npy(embedded: Iterable[Embedded], width: int, output: str) -> None:
    """All texts in one array, which is held."""
    found = [one.vectors for one in embedded]
    vectors = np.array(found, np.float32) if found else np.zeros((0, width), np.float32)
    header = np.lib.format.header_data_from_array_1_0(vectors)
    with cache.new_file(Path(output)) as file:
        # Not np.save, which wants a file that it can seek in.
        np.lib.format.write_array_header_1_0(file, header)
        file.write(vectors.data)


def write_npz(embedded: Iterable[Embedded], output: str) -> None:
    """An array a text, written as it comes; one of their places at the end."""
    places = []
    with (
        cache.new_file(Path(output)) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):

        def add(name: str, array: np.ndarray) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array))

        for number, one in enumerate(embedded):
            add(str(number), one.vectors)
            places.append(one.place)
        add("places", np.array(places, np.str_))


def write_parquet(embedded: Iterable[Embedded], output: str) -> None:
    """A row a text, written in groups: its place, its pieces, its vectors."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as stack:
        writer = None
        for group in inputs.in_chunks(embedded):
            kind = pa.float32()
            for _ in range(group[0].vectors.ndim):
                kind = pa.list_(kind)
            vectors = pa.array([one.vectors.tolist() for one in group], kind)
            columns = {"place": [one.place for one in group]}
            columns |= {"pieces": [one.pieces for one in group], "embedding": vectors}
            table = pa.table(columns)
            if writer is None:
                file = stack.enter_context(cache.new_file(Path(output)))
                writer = stack.enter_context(pq.ParquetWriter(file, table.schema))
            writer.write_table(table)


if __name__ == "__main__":
    errors.run(main)
