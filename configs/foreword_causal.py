"""The project's own Transformer from left to right, at a size for minutes of a CPU.

All that is not said here is as in foreword_masked.py and, of text and objective, as in
gpt_mini.py.

    python train.py --config=configs/foreword_causal.py
"""

from ml_collections import ConfigDict

import configs
from configs import foreword_masked, gpt_mini


def get_config(arg: str = "") -> ConfigDict:
    config, masked = gpt_mini.get_config(), foreword_masked.get_config()
    config.name = "foreword_causal"
    config.model, config.optim = masked.model, masked.optim
    config.model.update(sees="left", vocab_size=4096)
    config.data.tokenizer.update(vocab_size=4096)
    return configs.variant(config, arg)
