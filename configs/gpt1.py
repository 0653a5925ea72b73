"""GPT-1 (Radford et al. 2018): 12 layers x 768, post-LN, 512 tokens, 40,478 pieces.

The paper: BooksCorpus, 100 epochs of 64 x 512 tokens, Adam at 2.5e-4 after 2,000 steps
of warm-up, cosine to 0; about a month on 8 P600 GPUs; token perplexity 18.4. The corpus
is no longer distributed: the default is English Wikipedia, which has to be downloaded.
With the released vocabulary (encoder_bpe_40000.json and vocab_40000.bpe in FOLDER),
which has no end of text:

    python train.py --config=configs/gpt1.py --config.data.tokenizer.path=FOLDER
        --config.data.tokenizer.special_tokens=end_of_text=
        --config.data.corpus='books/*.txt' --config.data.document_boundary=file

All that is not said here is as in gpt2.py. No run at this size has been measured yet.
"""

from ml_collections import ConfigDict

import configs
from configs import gpt2


def get_config(arg: str = "") -> ConfigDict:
    config = gpt2.get_config()
    config.name = "gpt1"
    config.data.update(sequence_length=512, batch_size=64)
    config.data.tokenizer.update(vocab_size=40_478, lowercase=True, unicode_form="NFC")

    config.model.update(vocab_size=40_478, max_positions=512)
    config.model.update(pre_norm=False, residual_scaling=False)
    config.model.update(position_init_std=0.02, table_dropout=True)
    config.model.update(embedding_dropout=0.1, attention_dropout=0.1)
    config.model.residual_dropout = 0.1

    config.optim.update(total_steps=1_000_000, b2=0.999, weight_decay=0.01)
    config.optim.update(learning_rate=2.5e-4, end_learning_rate=0.0)
    config.run.micro_batches = 1
    return configs.variant(config, arg)
