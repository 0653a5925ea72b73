"""The project's own Transformer from left to right and on masked words, with the same
weights, at a size for minutes of a CPU.

All that is not said here is as in foreword_masked.py, and so are text and tokenizer.
Half of the rows are of each kind, so that a run of its own of either kind, at as many
updates, sees twice the tokens.

    python train.py --config=configs/foreword_mixed.py
"""

from ml_collections import ConfigDict

import configs
from configs import foreword_masked


def get_config(arg: str = "") -> ConfigDict:
    config = foreword_masked.get_config()
    config.name = "foreword_mixed"
    config.data.update(sequence_length=128, batch_size=8)
    config.objective.update(name="mixed", max_predictions=40)
    config.objective.causal_share = 0.5  # of the rows of a batch
    return configs.variant(config, arg)
