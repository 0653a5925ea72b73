"""The nine tasks of GLUE (Wang et al. 2019), from TFDS: configs/finetune/glue.py:mrpc

    python finetune.py --config=configs/finetune/glue.py:mrpc
        --config.init_from=runs/bert_base

BERT's settings (Devlin et al. 2019, appendix A.3; run_classifier.py): 3 epochs of 32
examples, 128 pieces, and the rate that the paper chooses on the held-out part from
2e-5, 3e-5, 4e-5 and 5e-5. `glue.py:mrpc:gpt1` has GPT-1's (Radford et al. 2018, 4.1):
6.25e-5, decay 0.01, auxiliary language model 0.5. The test splits are
unlabelled and not predicted.
Published test scores, BERT-base: MNLI 84.6, QQP 71.2, QNLI 90.5, SST-2 93.5, CoLA 52.1,
STS-B 85.8, MRPC 88.9, RTE 66.4; GPT-1's table 4 has CoLA 45.4, SST-2 91.3, MRPC 82.3.
No result has been measured here yet.
"""

from ml_collections import ConfigDict

from configs.finetune import topic
from errors import UserError

# Task -> columns, metric, split to evaluate on.
TASKS = {
    "cola": (("sentence",), "matthews", "validation"),
    "sst2": (("sentence",), "accuracy", "validation"),
    "mrpc": (("sentence1", "sentence2"), "f1", "validation"),
    "qqp": (("question1", "question2"), "f1", "validation"),
    "stsb": (("sentence1", "sentence2"), "spearman", "validation"),
    "mnli": (
        ("premise", "hypothesis"),
        "accuracy",
        "validation_matched",
    ),
    "qnli": (("question", "sentence"), "accuracy", "validation"),
    "rte": (("sentence1", "sentence2"), "accuracy", "validation"),
    "wnli": (("sentence1", "sentence2"), "accuracy", "validation"),
}
# As TFDS names them; of two the last is the positive one in F1.
LABELS = {
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
    "wnli": ("not_entailment", "entailment"),
}


def get_config(arg: str = "") -> ConfigDict:
    name, _, rest = arg.partition(":")
    if name not in TASKS or rest not in ("", "gpt1", "tiny"):
        raise UserError(
            f"glue.py:{arg}: write the task after the file name, glue.py:TASK, one of "
            f"{', '.join(TASKS)}; then nothing, :gpt1 or :tiny"
        )
    columns, metric, validation = TASKS[name]
    config = topic.get_config()
    config.name = f"glue_{name}" + ("_gpt1" if rest == "gpt1" else "")
    config.task.update(text_columns=columns, metric=metric)
    if name == "stsb":
        config.task.kind = "similarity"
    else:
        config.task.labels = LABELS[name]
    config.data.update(
        train=f"tfds:glue/{name}@train",
        eval=f"tfds:glue/{name}@{validation}",
        max_length=128,
        batch_size=32,
    )
    config.optim.update(
        epochs=3.0,
        learning_rate=5e-5,
        groups=((".*", {}),),
        schedule="bert_linear",
        warmup_fraction=0.1,
    )
    if rest == "gpt1":
        config.optim.update(
            learning_rate=6.25e-5,
            warmup_fraction=0.002,
            schedule="linear",
            epsilon=1e-8,
        )
        config.objective.lm_weight = 0.5
    return topic.variant(config, "tiny" if rest == "tiny" else "")
