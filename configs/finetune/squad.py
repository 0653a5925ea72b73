"""Extractive question answering: SQuAD JSON (Rajpurkar et al. 2016, 2018; XQuAD).

Windows over long contexts as run_squad.py has them, whose sizes for models of 512
positions are max_length 384, window_stride 128, max_question_length 64.

    python finetune.py --config=configs/finetune/squad.py
        --config.init_from=runs/bert_mini --config.data.train=xquad_en_train.json
        --config.data.eval=xquad_en_dev.json

SQuAD 2.0: --config.task.null_answers=True. XQuAD with 200 labels: F1 6.3 for a small
BERT, pre-trained or not (docs/results.md). SQuAD itself was not tried.
"""

from ml_collections import ConfigDict

import configs
from configs.finetune import topic


def get_config(arg: str = "") -> ConfigDict:
    config = topic.get_config()
    config.name = "squad"
    config.task.update(
        kind="span",
        text_columns=("context",),
        question_columns=("question",),
        label_column="answers",
        metric="f1",
    )
    config.data.max_length = 128
    config.data.max_question_length = 32
    config.data.window_stride = 48
    return configs.variant(config, arg)
