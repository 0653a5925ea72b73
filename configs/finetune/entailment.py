"""Does the premise entail the hypothesis? SICK (Marelli et al. 2014), or any pairs.

    python finetune.py --config=configs/finetune/entailment.py
        --config.init_from=runs/bert_mini --config.data.train=sick_train.tsv
        --config.data.eval=sick_dev.tsv --config.data.test=sick_test.tsv

How two texts relate shows where they stand, more than in one token that pre-training
never read out: of all 4,500 pairs a model of an hour is right on 0.77 by the mean of
its tokens, on 0.63 by the papers' readout (docs/results.md). Released BERTs, which have
read pairs, and GPTs want head.pooling="readout".
"""

from ml_collections import ConfigDict

import configs
from configs.finetune import topic


def get_config(arg: str = "") -> ConfigDict:
    config = topic.get_config()
    config.name = "entailment"
    config.task.text_columns = ("premise", "hypothesis")
    config.data.max_length = 96
    config.head.pooling = "mean"  # released models: "readout"
    return configs.variant(config, arg)
