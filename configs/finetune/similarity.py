"""How much alike are two sentences, 0 to 5? STS benchmark (Cer et al. 2017).

Regression on the score; a decoder reads both orders and adds them (GPT-1, section 3.3).

    python finetune.py --config=configs/finetune/similarity.py
        --config.init_from=runs/bert_mini --config.data.train=stsb_en_train.tsv
        --config.data.eval=stsb_en_dev.tsv --config.data.test=stsb_en_test.tsv

From 200 labels small models reach a Pearson correlation of 0.08 to 0.16, pre-trained
or not; from all 5,749 one that has read for an hour 0.61, by the mean of its tokens
(docs/results.md). Released BERTs, which have read pairs, and GPTs want
head.pooling="readout".
"""

from ml_collections import ConfigDict

import configs
from configs.finetune import topic


def get_config(arg: str = "") -> ConfigDict:
    config = topic.get_config()
    config.name = "similarity"
    config.task.update(
        kind="similarity",
        text_columns=("sentence1", "sentence2"),
        label_column="score",
        metric="pearson",
    )
    config.data.max_length = 96
    config.head.pooling = "mean"  # released models: "readout"
    return configs.variant(config, arg)
