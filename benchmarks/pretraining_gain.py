"""What pre-training gains: the same tasks from a pre-trained run and from scratch.

    python -m benchmarks.pretraining_gain --data=FOLDER --runs=runs/english_gpt,...
        [--tasks=supersense,sick] [--labels=200] [--seeds=3] [--workdir=runs/gain]

`FOLDER` has the files of `TASKS`. Each run of `--runs` is fine-tuned on each task from
its weights and from fresh ones, with the same settings, seeds and labels; what is done
already is not done again. Held-out files are cut to `--limit` records. Prints a table
in Markdown: mean and sample standard deviation over the seeds, on the test file.

Beside them stand the most frequent label for all, and a floor: a unigram TF-IDF with a
linear classifier on the same labels; where scores or answers are asked for the cosine
of the two TF-IDF vectors, which learns nothing but the frequencies; tagging: a linear
classifier of the single word; spans: the first ten words of the context.
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from data import labelled
from data.labelled import Record
from tasks import KINDS, splits

# Name -> config, stem of the files, ending, splits, further settings.
SPLITS = ("train", "dev", "test")
TASKS = {
    "supersense": ("topic", "classification/wordnet_supersense", ".tsv.gz", SPLITS, {}),
    "sick": ("entailment", "entailment/sick", ".tsv", SPLITS, {}),
    "stsb": ("similarity", "similarity/stsb_en", ".tsv", SPLITS, {}),
    "wnut17": ("tagging", "tagging/wnut17", ".conll", SPLITS, {}),
    "mctest": ("choice", "choice/mctest500", ".jsonl.gz", SPLITS, {"epochs": 4.0}),
    "xquad": ("squad", "qa/xquad_en", ".json", ("train", "dev"), {"epochs": 6.0}),
    "nsmc": ("nsmc", "korean/nsmc", ".tsv.gz", SPLITS, {}),
}


def main() -> None:
    arguments = parse_arguments()
    rows = []
    for name in arguments.tasks.split(","):
        config = task_config(arguments, name)
        floor = [
            floor_of(config, seed, FLOORS)[config.task.metric]
            for seed in range(arguments.seeds)
        ]
        constant = "none"
        if config.task.kind in CONSTANTS:
            metrics = floor_of(config, 0, CONSTANTS)
            constant = f"{metrics[config.task.metric]:.3f}"
        row = [name, config.task.metric, constant, shown(floor)]
        for run in arguments.runs.split(","):
            for load_weights in (False, True):
                row.append(measure(arguments, name, config, run, load_weights))
                print(" | ".join(row), flush=True)
        rows.append(row)
    heads = [
        f"{Path(run).name}, {start}"
        for run in arguments.runs.split(",")
        for start in ("from scratch", "pre-trained")
    ]
    columns = ["task", "metric", "one label for all", "TF-IDF", *heads]
    for row in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(row)} |")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", required=True, help="run folders, apart by commas")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--labels", type=int, default=200, help="0: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=16.0)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--limit", type=int, default=1000, help="held-out records")
    parser.add_argument("--workdir", type=Path, default=Path("runs/gain"))
    return parser.parse_args()


def task_config(arguments: argparse.Namespace, name: str) -> Any:
    """The config of a task with its files and what all runs share."""
    module, stem, ending, splits, settings = TASKS[name]
    config = importlib.import_module(f"configs.finetune.{module}").get_config()
    for split in splits:
        path = arguments.data / f"{stem}_{split}{ending}"
        key = {"dev": "eval"}.get(split, split)
        if split != "train" and ending != ".json":
            path = cut(path, arguments.workdir / "data", arguments.limit)
        config.data[key] = str(path)
    config.data.train_examples = arguments.labels
    config.data.batch_size = 16
    config.optim.learning_rate = arguments.learning_rate
    config.optim.epochs = arguments.epochs
    config.optim.update(settings)
    config.optim.eval_every_epochs = config.optim.epochs / 4
    return config


def cut(path: Path, folder: Path, limit: int) -> Path:
    """The first `limit` records of a file, as JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{path.name.split('.')[0]}_{limit}.jsonl"
    records = labelled.read(str(path))[:limit]
    lines = [json.dumps(record.fields, ensure_ascii=False) for record in records]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


def measure(
    arguments: argparse.Namespace, name: str, config: Any, run: str, load_weights: bool
) -> str:
    """Runs the seeds of one cell of the table in a process of their own."""
    start = "pretrained" if load_weights else "scratch"
    folder = arguments.workdir / f"{name}_{arguments.labels}_{Path(run).name}_{start}"
    if not (folder / "seeds.json").exists():
        path = f"configs/finetune/{TASKS[name][0]}.py"
        given = {
            "init_from": run,
            "load_weights": load_weights,
            **{f"data.{key}": config.data[key] for key in ("train", "eval", "test")},
            "data.train_examples": arguments.labels,
            "data.batch_size": config.data.batch_size,
            "optim.learning_rate": config.optim.learning_rate,
            "optim.epochs": config.optim.epochs,
            "optim.eval_every_epochs": config.optim.eval_every_epochs,
        }
        command = [sys.executable, "finetune.py", f"--config={path}"]
        command += [f"--config.{key}={value}" for key, value in given.items()]
        command += [f"--seeds={arguments.seeds}", f"--workdir={folder}"]
        began = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)
        minutes = (time.monotonic() - began) / 60
        (folder / "minutes.txt").write_text(f"{minutes:.2f}\n")
    summary = json.loads((folder / "seeds.json").read_text())
    split = "test" if config.data.test else "eval"
    failed = len(summary["failed_seeds"])
    values = summary["splits"][split][config.task.metric]["values"]
    return shown(values) + (f" ({failed} constant)" if failed else "")


def shown(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


# The floor.


def floor_of(config: Any, seed: int, floors: dict) -> dict[str, float]:
    """Metrics of a floor on the test (else the held-out) file, with the same labels."""
    kind = KINDS[config.task.kind]
    task = splits.make_task(config, kind)
    records, labels = splits.read(config.data, seed, kind, task)
    train, test = records["train"], records.get("test", records["eval"])
    gold = [record.fields[task.label_column] for record in test]
    predicted = floors[task.kind](task, train, test)
    predicted = [p | {"gold": g} for p, g in zip(predicted, gold, strict=True)]
    return kind.measure(predicted, labels, task)


def texts_of(records: list[Record], columns: tuple[str, ...]) -> list[str]:
    return [" ".join(record.fields[column] for column in columns) for record in records]


def most_frequent(task: Any, train: list[Record], test: list[Record]) -> list[dict]:
    label = statistics.mode(record.fields[task.label_column] for record in train)
    return [{"label": label} for _ in test]


def linear_classes(task: Any, train: list[Record], test: list[Record]) -> list[dict]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(sublinear_tf=True)
    inputs = vectorizer.fit_transform(texts_of(train, task.text_columns))
    model = LogisticRegression(C=10.0, max_iter=1000)
    model.fit(inputs, [record.fields[task.label_column] for record in train])
    outputs = model.predict(
        vectorizer.transform(texts_of(test, task.text_columns))
    ).tolist()
    return [{"label": label} for label in outputs]


def cosines(pairs: list[tuple[str, str]], fitted_on: list[str]) -> list[float]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True).fit(fitted_on)
    one, other = (vectorizer.transform(side) for side in zip(*pairs, strict=True))
    return one.multiply(other).sum(axis=1).A1.tolist()


def similar_pairs(task: Any, train: list[Record], test: list[Record]) -> list[dict]:
    pairs = [tuple(r.fields[c] for c in task.text_columns) for r in test]
    scores = cosines(pairs, texts_of(train, task.text_columns))
    return [{"score": score} for score in scores]


def similar_answers(task: Any, train: list[Record], test: list[Record]) -> list[dict]:
    (column,) = task.answer_columns
    contexts = texts_of(test, task.text_columns)
    questions = texts_of(test, task.question_columns)
    predicted = []
    for record, context, question in zip(test, contexts, questions, strict=True):
        pairs = [(context, f"{question} {answer}") for answer in record.fields[column]]
        scores = cosines(pairs, [context, *record.fields[column], question])
        predicted.append({"label": str(scores.index(max(scores)))})
    return predicted


def linear_words(task: Any, train: list[Record], test: list[Record]) -> list[dict]:
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    (column,) = task.text_columns
    words = [{"word": word.lower()} for r in train for word in r.fields[column]]
    tags = [tag for r in train for tag in r.fields[task.label_column]]
    model = make_pipeline(DictVectorizer(), LogisticRegression(C=10.0, max_iter=1000))
    model.fit(words, tags)
    return [
        {
            "tags": model.predict(
                [{"word": w.lower()} for w in r.fields[column]]
            ).tolist()
        }
        for r in test
    ]


def whole_window(task: Any, train: list[Record], test: list[Record]) -> list[dict]:
    (column,) = task.text_columns
    return [{"answer": " ".join(r.fields[column].split()[:10])} for r in test]


CONSTANTS = {"classification": most_frequent, "choice": most_frequent}
FLOORS = {
    "classification": linear_classes,
    "similarity": similar_pairs,
    "choice": similar_answers,
    "tagging": linear_words,
    "span": whole_window,
}


if __name__ == "__main__":
    main()
