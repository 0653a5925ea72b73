"""How does the scene go on? SWAG (Zellers et al. 2018), one ending of four.

    python finetune.py --config=configs/finetune/swag.py
        --config.init_from=runs/bert_base --config.data.train=train.csv
        --config.data.eval=val.csv

The release's CSV. A sequence for each ending: sent1, then sent2 and the ending.
BERT's settings (Devlin et al. 2019, section 4.4): 3 epochs of 16 examples at 2e-5.
Accuracy on dev and test: base 81.6 on dev, large 86.6 and 86.3; GPT-1 78.0 on test.
No result has been measured here yet.
"""

from ml_collections import ConfigDict

import configs
from configs.finetune import topic
from configs.finetune.glue import BERT


def get_config(arg: str = "") -> ConfigDict:
    config = topic.get_config()
    config.name = "swag"
    config.task.update(
        kind="choice",
        text_columns=("sent1",),
        question_columns=("sent2",),
        answer_columns=("ending0", "ending1", "ending2", "ending3"),
        labels=("0", "1", "2", "3"),
    )
    config.data.update(max_length=128, batch_size=16)
    config.optim.update(BERT, learning_rate=2e-5)
    return configs.variant(config, arg)
