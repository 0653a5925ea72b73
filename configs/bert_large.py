"""BERT-large (Devlin et al. 2019): 24 layers x 1024; all else as in bert_base.py.

The paper: 4 days on 64 TPU chips, held-out masked-LM perplexity 3.23.

    python train.py --config=configs/bert_large.py
"""

from ml_collections import ConfigDict

import configs
from configs import bert_base


def get_config(arg: str = "") -> ConfigDict:
    config = bert_base.get_config()
    config.name = "bert_large"
    config.model.update(num_layers=24, num_heads=16, hidden_size=1024, ffn_size=4096)
    config.run.micro_batches = 4
    return configs.variant(config, arg)
