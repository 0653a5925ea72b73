"""Does the premise entail the hypothesis? SICK (Marelli et al. 2014), or any pairs.

    python finetune.py --config=configs/finetune/entailment.py
        --config.init_from=runs/bert_mini --config.data.train=sick_train.tsv
        --config.data.eval=sick_dev.tsv --config.data.test=sick_test.tsv

With all 4,500 pairs a small BERT has 0.621, from scratch 0.626; with 200 labels, and
for a GPT: docs/results.md.
"""

from ml_collections import ConfigDict

import configs
from configs.finetune import topic


def get_config(arg: str = "") -> ConfigDict:
    config = topic.get_config()
    config.name = "entailment"
    config.task.text_columns = ("premise", "hypothesis")
    config.data.max_length = 96
    return configs.variant(config, arg)
