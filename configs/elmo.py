"""ELMo (Peters et al. 2018) at its published size, on the 1 Billion Word Benchmark.

    python train.py --config=configs/elmo.py

As bilm-tf's bin/train_elmo.py: 20 words a row, 128 rows on each of 3 GPUs, Adagrad at
0.2, a softmax of 793,471 words estimated with 8,192, 10 passes over 769M words. Its
loss is 20 times ours, so it cuts gradients at a norm of 10 where we do at 0.5. Each
window of 20 words starts from a state of zeros here (objective.carry_state=True: the
forward model's goes on); the release carries both from batch to batch. The mean
perplexity of both directions on held-out text is 39.7 there (section 3.4), after two
weeks. The corpus is TFDS's lm1b, to be downloaded, a sentence a document. All that is
not said here is as in gpt2.py.

No run at this size has been measured yet.
"""

from ml_collections import ConfigDict

import configs
from configs import gpt2


def get_config(arg: str = "") -> ConfigDict:
    config = gpt2.get_config()
    config.name = "elmo"
    config.data.update(corpus="tfds:lm1b", sequence_length=20, batch_size=384)
    # Its words are apart by spaces; all are read, the most frequent ones predicted.
    config.data.tokenizer.update(algorithm="symbols", vocab_size=10_000_000)
    config.model = ConfigDict(
        {
            "family": "elmo",
            "precision": "bfloat16",  # of the matrix products; or "float32"
            "vocab_size": 793_471,
            "max_positions": 512,  # words that it is used on at once
            "max_characters": 50,
            "num_layers": 2,
            "cell_size": 4096,
            "projection_size": 512,
            "cell_clip": 3.0,
            "projection_clip": 3.0,
            "character_size": 16,
            "filters": (
                (1, 32),
                (2, 32),
                (3, 64),
                (4, 128),
                (5, 256),
                (6, 512),
                (7, 1024),
            ),
            "num_highways": 2,
            "activation": "relu",
            "residual_dropout": 0.1,
            "softmax": True,
        }
    )
    config.objective = ConfigDict(
        {
            "name": "bidirectional_lm",
            "sampled_words": 8192,  # 0: the whole softmax
            # True: rows go through the text in lanes, and the forward model goes on
            # where the batch before ended; False: every window starts from zeros.
            "carry_state": False,
        }
    )
    config.optim.update(total_steps=1_000_840, warmup_steps=0, eval_every_steps=10_000)
    config.optim.update(schedule="constant", learning_rate=0.2, end_learning_rate=0.2)
    config.optim.update(adam="elmo", epsilon=0.0, weight_decay=0.0, clip_norm=0.5)
    config.optim.no_decay = (r".*/bias",)
    config.run.micro_batches = 1
    return configs.variant(config, arg)
