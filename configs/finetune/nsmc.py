"""Korean film reviews into positive and negative (NSMC; https://github.com/e9t/nsmc).

    python finetune.py --config=configs/finetune/nsmc.py
        --config.init_from=runs/korean_bert --config.data.train=nsmc_train.tsv
        --config.data.test=nsmc_test.tsv

Columns `text` and `label`; the release's own are `document` and `label` (0, 1):
--config.task.text_columns="('document',)". With 200 labels a model that had read
reviews without labels is right on 0.796, from scratch on 0.599 (docs/results.md); all
labels were not tried.
"""

from ml_collections import ConfigDict

import configs
from configs.finetune import topic


def get_config(arg: str = "") -> ConfigDict:
    config = topic.get_config()
    config.name = "nsmc"
    config.task.metric = "accuracy"
    config.optim.learning_rate = 3e-4  # of an hour's model; released ones: 2e-5
    return configs.variant(config, arg)
