"""What pre-training gains on several tasks, from 200 labels of each.

    python sweep.py --workdir=sweeps/tasks
        --sweep=configs/sweeps/tasks.py:FOLDER,supersense+sick,RUN[,RUN]

FOLDER has the files of `TASKS`, such as classification/wordnet_supersense_train.tsv.gz.
Each RUN, a folder of a pre-trained model, is fine-tuned on the tasks named, with its
weights and, the base of the comparison, with fresh ones, both at each of `RATES`, of
which the held-out file chooses; lines to beat stand beside.
"""

from configs.sweeps import Overrides, Stage, Sweep, over, product

# Name -> config, stem of the files, their ending, whether there is a test file, epochs.
TASKS = {
    "supersense": ("topic", "classification/wordnet_supersense", "tsv.gz", True, 12.0),
    "newsgroups": ("topic", "topics/newsgroups", "tsv.gz", True, 12.0),
    "sick": ("entailment", "entailment/sick", "tsv", True, 12.0),
    "stsb": ("similarity", "similarity/stsb_en", "tsv", True, 12.0),
    "wnut17": ("tagging", "tagging/wnut17", "conll", True, 12.0),
    "mctest": ("choice", "choice/mctest500", "jsonl.gz", True, 4.0),
    "xquad": ("squad", "qa/xquad_en", "json", False, 6.0),
    "nsmc": ("nsmc", "korean/nsmc", "tsv.gz", True, 12.0),  # in Korean
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
    for name in names.split("+"):
        config, *files = TASKS[name]
        path = f"configs/finetune/{config}.py"
        long = LONG if name == "newsgroups" else {}
        variants = product([files_of(folder, *files) | long], starts)
        stages.append(Stage("finetune", path, variants, name))
        metrics += METRICS[config]
    return Sweep(
        stages=(tuple(Stage("run", run, ({},)) for run in runs), tuple(stages)),
        seeds=(0, 1, 2),
        metrics=tuple(dict.fromkeys(metrics)),
        budget="",
    )


def files_of(
    folder: str, stem: str, ending: str, has_test: bool, epochs: float
) -> Overrides:
    given = {
        "data.train": f"{folder}/{stem}_train.{ending}",
        "data.eval": f"{folder}/{stem}_dev.{ending}",
        "data.train_examples": 200,
        "data.batch_size": 16,
        "optim.epochs": epochs,
        "optim.eval_every_epochs": epochs / 2,
    }
    return given | ({"data.test": f"{folder}/{stem}_test.{ending}"} if has_test else {})
