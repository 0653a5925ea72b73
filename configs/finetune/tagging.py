"""Named entities, or any tag a word: a file of CoNLL columns (WNUT-17, CoNLL-2003).

Scored on words, each by its first piece (BERT, section 5.3), as entities (seqeval) in
IOB, IOBES, BILOU or BMES; for other tags --config.task.metric=accuracy. Words whose tag
is -100 are not counted.

    python finetune.py --config=configs/finetune/tagging.py
        --config.init_from=runs/bert_mini --config.data.train=wnut17_train.conll
        --config.data.eval=wnut17_dev.conll --config.data.test=wnut17_test.conll

WNUT-17 with 200 labels: entity F1 0.06 for small models, 0.02 and 0.03 from scratch
(docs/results.md).
"""

from ml_collections import ConfigDict

import configs
from configs.finetune import topic


def get_config(arg: str = "") -> ConfigDict:
    config = topic.get_config()
    config.name = "tagging"
    config.task.update(
        kind="tagging",
        text_columns=("words",),
        label_column="tags",
        metric="entity_f1",
    )
    config.data.max_length = 96
    return configs.variant(config, arg)
