"""The project's own Transformer on masked words, at a size for minutes of a CPU.

All that is not said here is as in bert_mini.py, and so are text and tokenizer. How it
was chosen, and what each part gives: docs/recipe.md.

    python train.py --config=configs/foreword_masked.py
"""

from ml_collections import ConfigDict

import configs
from configs import bert_mini


def get_config(arg: str = "") -> ConfigDict:
    config = bert_mini.get_config()
    config.name = "foreword_masked"
    config.model = ConfigDict(
        {
            "family": "foreword",
            "sees": "both",
            "precision": "float32",  # a CPU has nothing faster
            "vocab_size": 4096,
            "max_positions": 128,  # without a table: what it is used on at most
            "num_layers": 4,
            "num_heads": 4,
            "head_dim": 32,
            "hidden_size": 128,
            "ffn_size": 512,
            "near_radius": 2,
            "value_residual": True,
            "rotary_base": 10_000.0,
            "activation": "relu_squared",
            "norm_epsilon": 1e-6,
            "embedding_dropout": 0.0,
            "attention_dropout": 0.0,
            "residual_dropout": 0.0,
            "init_std": 0.05,
        }
    )
    config.objective.update(mask_rate=0.3, max_predictions=20)
    config.optim.update(total_steps=5000, warmup_steps=250, eval_every_steps=1000)
    config.optim.update(learning_rate=3e-3)
    return configs.variant(config, arg)
