"""ELMo at a size for minutes of a CPU, on the docstrings of this machine.

    python train.py --config=configs/elmo_mini.py

Words are split at white space and punctuation; all 16,384 that it predicts compete in
training. Adam in place of Adagrad learns in fewer updates. All that is not said here is
as in elmo.py.
"""

from ml_collections import ConfigDict

import configs
from configs import elmo


def get_config(arg: str = "") -> ConfigDict:
    config = elmo.get_config()
    config.name = "elmo_mini"
    config.data.update(corpus="python_docs", sequence_length=64, batch_size=16)
    config.data.update(heldout_fraction=0.02, heldout_tokens=0)
    config.data.tokenizer.algorithm = "words"
    config.model.update(vocab_size=16_384, max_positions=128, max_characters=24)
    config.model.update(cell_size=512, projection_size=128, residual_dropout=0.0)
    config.model.filters = ((1, 16), (2, 32), (3, 64), (4, 128))
    config.model.num_highways = 1
    config.model.precision = "float32"  # a CPU has nothing faster
    config.objective.sampled_words = 1024
    config.optim.update(total_steps=1500, warmup_steps=100, eval_every_steps=500)
    config.optim.update(schedule="linear", learning_rate=3e-3, end_learning_rate=0.0)
    config.optim.update(adam="adamw", epsilon=1e-8, clip_norm=1.0)
    config.run.log_every_steps = 20
    return configs.variant(config, arg)
