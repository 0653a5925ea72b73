"""Which answer is right? MCTest (Richardson et al. 2013), RACE, or any such file.

A sequence for each answer, a softmax over their scores (GPT-1, section 3.3).

    python finetune.py --config=configs/finetune/choice.py
        --config.init_from=runs/bert_mini --config.data.train=mctest500_train.jsonl.gz
        --config.data.eval=mctest500_dev.jsonl.gz

The models' table of positions bounds max_length: the minis have 128, and longer
contexts lose their end. MCTest with 200 labels: 0.27 for a small BERT, 0.30 from
scratch; 0.25 is chance (docs/results.md).
"""

from ml_collections import ConfigDict

import configs
from configs.finetune import topic


def get_config(arg: str = "") -> ConfigDict:
    config = topic.get_config()
    config.name = "choice"
    config.task.update(
        kind="choice",
        text_columns=("context",),
        question_columns=("question",),
        answer_columns=("choices",),
        label_column="answer",
    )
    config.data.max_length = 128
    config.data.batch_size = 16
    return configs.variant(config, arg)
