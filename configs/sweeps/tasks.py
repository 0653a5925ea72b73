"""What pre-training gains on several tasks, from 200 labels of each or from all.

    python sweep.py --workdir=sweeps/tasks
        --sweep=configs/sweeps/tasks.py:FOLDER,supersense+sick:all,RUN[,RUN]

FOLDER has the files of `TASKS`, such as classification/wordnet_supersense_train.tsv.gz.
Each RUN, a folder of a pre-trained model, is fine-tuned on the tasks named, with its
weights and, the base of the comparison, with fresh ones, both at each of `RATES`, of
which the held-out file chooses; lines to beat stand beside. A task has 200 labels, or
all where ":all" follows its name.
"""

from typing import NamedTuple

from configs.sweeps import Overrides, Stage, Sweep, over, product


class Plan(NamedTuple):
    """Of a task: its config in configs/finetune/, the stem of its files, their ending,
    epochs of 200 labels (16 a batch) and of all, examples a batch of all, and whether
    there is a test file."""

    config: str
    stem: str
    ending: str
    epochs: float
    epochs_of_all: float
    batch_of_all: int
    has_test: bool = True


TASKS = {
    "supersense": Plan(
        "topic", "classification/wordnet_supersense", "tsv.gz", 12.0, 3.0, 64
    ),
    "newsgroups": Plan("topic", "topics/newsgroups", "tsv.gz", 12.0, 6.0, 32),
    "sick": Plan("entailment", "entailment/sick", "tsv", 12.0, 5.0, 32),
    "stsb": Plan("similarity", "similarity/stsb_en", "tsv", 12.0, 5.0, 32),
    "wnut17": Plan("tagging", "tagging/wnut17", "conll", 12.0, 10.0, 32),
    "mctest": Plan("choice", "choice/mctest500", "jsonl.gz", 4.0, 4.0, 16),
    "xquad": Plan("squad", "qa/xquad_en", "json", 6.0, 8.0, 16, has_test=False),
    "nsmc": Plan("nsmc", "korean/nsmc", "tsv.gz", 12.0, 3.0, 64),  # in Korean
}
LONG = {"data.max_length": 256, "head.pooling": "mean"}  # of messages
RATES = (3e-4, 1e-3, 3e-3)
METRICS = {
    "topic": ("test/accuracy",),
    "nsmc": ("test/accuracy",),
    "entailment": ("test/accuracy", "test/macro_f1"),
    "similarity": ("test/pearson",),
    "tagging": ("test/entity_f1",),
    "choice": ("test/accuracy",),
    "squad": ("eval/f1",),
}


def get_sweep(argument: str) -> Sweep:
    folder, names, *runs = argument.split(",")
    starts = product(
        over("load_weights", (False, True)), over("optim.learning_rate", RATES)
    )
    stages, metrics = [], []
    for named in names.split("+"):
        name, _, labels = named.partition(":")
        plan = TASKS[name]
        path = f"configs/finetune/{plan.config}.py"
        long = LONG if name == "newsgroups" else {}
        given = files_of(folder, plan) | size_of(plan, labels) | long
        stages.append(Stage("finetune", path, product([given], starts), named))
        metrics += METRICS[plan.config]
    return Sweep(
        stages=(tuple(Stage("run", run, ({},)) for run in runs), tuple(stages)),
        seeds=(0, 1, 2),
        metrics=tuple(dict.fromkeys(metrics)),
        budget="",
    )


def files_of(folder: str, plan: Plan) -> Overrides:
    splits = {"train": "train", "eval": "dev"}
    if plan.has_test:
        splits["test"] = "test"
    return {
        f"data.{split}": f"{folder}/{plan.stem}_{name}.{plan.ending}"
        for split, name in splits.items()
    }


def size_of(plan: Plan, labels: str) -> Overrides:
    """`labels`: "all", or "" for 200 of them."""
    if labels not in ("", "all"):
        raise ValueError(f"{labels!r} labels: write all, or nothing for 200")
    epochs = plan.epochs_of_all if labels else plan.epochs
    return {
        "data.train_examples": 0 if labels else 200,
        "data.batch_size": plan.batch_of_all if labels else 16,
        "optim.epochs": epochs,
        "optim.eval_every_epochs": epochs / 2,
    }
