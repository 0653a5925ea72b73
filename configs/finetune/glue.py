"""The nine tasks of GLUE (Wang et al. 2019), from TFDS: configs/finetune/glue.py:mrpc

    python finetune.py --config=configs/finetune/glue.py:mrpc
        --config.init_from=runs/bert_base

TFDS's code of GLUE needs TensorFlow: a data set is prepared once, anywhere, with
`tfds build glue/mrpc --file_format=array_record`, and copied into TFDS_DATA_DIR.
BERT's settings (Devlin et al. 2019, section 4.1 and appendix A.3; run_classifier.py):
3 epochs of 32 examples, 128 pieces, a tenth of warm-up, Adam as released, and the rate
that the paper chooses on the held-out part from 2e-5, 3e-5, 4e-5 and 5e-5.
`glue.py:mrpc:gpt1` has GPT-1's (Radford et al. 2018, section 4.1): 6.25e-5, 0.2 % of
warm-up, its Adam, auxiliary language model 0.5. Each also with `:tiny`.

The test split, whose labels are secret, is predicted at the end with the best weights,
predictions_test.jsonl in the run folder; the file for the GLUE server is

    python predict.py classify --workdir=runs/glue_mrpc --input=tfds:glue/mrpc@test
        --format=glue --output=submission/          (similarity for STS-B)

MNLI is measured and predicted on the matched genres; the mismatched ones are another
--input, tfds:glue/mnli@test_mismatched, or in the run itself an override,
--config.data.test=tfds:glue/mnli@test_mismatched (and data.eval likewise, which is
@validation_matched). The diagnostic set is tfds:glue/ax@test.

Published test scores, BERT-base: MNLI 84.6/83.4, QQP 71.2, QNLI 90.5, SST-2 93.5, CoLA
52.1, STS-B 85.8, MRPC 88.9, RTE 66.4; GPT-1: MNLI 82.1/81.4, QQP 70.3, QNLI 88.1, SST-2
91.3, CoLA 45.4, STS-B 82.0 (Pearson), MRPC 82.3, RTE 56.0. No result has been measured
here yet.
"""

from ml_collections import ConfigDict

import configs
from configs import gpt_mini
from configs.finetune import topic
from errors import UserError

# Task -> columns, metric.
TASKS = {
    "cola": (("sentence",), "matthews"),
    "sst2": (("sentence",), "accuracy"),
    "mrpc": (("sentence1", "sentence2"), "f1"),
    "qqp": (("question1", "question2"), "f1"),
    "stsb": (("sentence1", "sentence2"), "spearman"),
    "mnli": (("premise", "hypothesis"), "accuracy"),
    "qnli": (("question", "sentence"), "accuracy"),
    "rte": (("sentence1", "sentence2"), "accuracy"),
    "wnli": (("sentence1", "sentence2"), "accuracy"),
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

# Of `optim`, whatever BERT is fine-tuned on (run_classifier.py, optimization.py).
BERT = {
    "epochs": 3.0,
    "schedule": "bert_linear",
    "warmup_fraction": 0.1,
    "adam": "bert",
    "epsilon": 1e-6,
    "groups": ((".*", {}),),
}


def get_config(arg: str = "") -> ConfigDict:
    name, _, rest = arg.partition(":")
    if name not in TASKS or rest not in ("", "tiny", "gpt1", "gpt1:tiny"):
        raise UserError(
            f"glue.py:{arg}: write the task after the file name, glue.py:TASK, one of "
            f"{', '.join(TASKS)}; then nothing, :gpt1, :tiny or :gpt1:tiny"
        )
    columns, metric = TASKS[name]
    config = topic.get_config()
    config.name = f"glue_{name}"
    config.task.update(text_columns=columns, metric=metric)
    if name == "stsb":
        config.task.kind = "similarity"
    else:
        config.task.labels = LABELS[name]
    genres = "_matched" if name == "mnli" else ""
    config.data.update(
        train=f"tfds:glue/{name}@train",
        eval=f"tfds:glue/{name}@validation{genres}",
        test=f"tfds:glue/{name}@test{genres}",
        max_length=128,
        batch_size=32,
    )
    config.optim.update(BERT, learning_rate=5e-5)
    if rest.startswith("gpt1"):
        config.name += "_gpt1"
        use_gpt1(config)
    return configs.variant(config, "tiny" if rest.endswith("tiny") else "")


def use_gpt1(config: ConfigDict) -> None:
    """GPT-1's settings (train.py, opt.py), and a GPT to train from scratch."""
    config.model = gpt_mini.get_config().model
    config.model.update(
        embedding_dropout=0.1, attention_dropout=0.1, residual_dropout=0.1
    )
    config.data.tokenizer.update(
        algorithm="byte_bpe", lowercase=False, strip_accents=False, unicode_form="none"
    )
    config.objective.update(lm_weight=0.5, lm_per_sequence=True)
    config.optim.update(
        epochs=3.0,
        schedule="gpt1_linear",
        learning_rate=6.25e-5,
        warmup_fraction=0.002,
        adam="gpt1",
        epsilon=1e-8,
        groups=((".*", {}),),
    )
