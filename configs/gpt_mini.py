"""GPT of 4 layers x 256 on the docstrings of this machine.

The block of GPT-2 (pre-LN, residual scaling at init; Radford et al. 2019) at the size
of BERT-Mini, byte-level BPE of 8,192 pieces. All that is not said here is as in
gpt2.py.

    python train.py --config=configs/gpt_mini.py
"""

from ml_collections import ConfigDict

import configs
from configs import gpt2


def get_config(arg: str = "") -> ConfigDict:
    config = gpt2.get_config()
    config.name = "gpt_mini"
    config.data.update(corpus="python_docs", sequence_length=128, batch_size=8)
    config.data.update(heldout_fraction=0.02, heldout_tokens=0)
    config.data.tokenizer.update(vocab_size=8192, sample_bytes=20_000_000)

    config.model.update(vocab_size=8192, max_positions=128, num_layers=4, num_heads=4)
    config.model.update(hidden_size=256, ffn_size=1024)
    config.model.precision = "float32"  # a CPU has nothing faster

    config.optim.update(total_steps=1000, warmup_steps=100, eval_every_steps=250)
    config.optim.update(learning_rate=1e-3, end_learning_rate=0.0)
    config.run.update(micro_batches=1, log_every_steps=20)
    return configs.variant(config, arg)
