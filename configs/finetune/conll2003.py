"""Named entities of CoNLL-2003 (Tjong Kim Sang and De Meulder 2003), as BERT tags them.

    python finetune.py --config=configs/finetune/conll2003.py
        --config.init_from=runs/bert_base --config.data.train=eng_train.conll
        --config.data.eval=eng_testa.conll --config.data.test=eng_testb.conll

The files are the task's own (word, part of speech, chunk, tag), named .conll.
BERT (Devlin et al. 2019, section 5.3): a cased model, the first piece of each word into
a linear layer, no CRF; batch, rate and epochs within appendix A.3. F1 of dev and test:
96.4 and 92.4 (base), 96.6 and 92.8 (large), with as much of the document around a
sentence as fits. Here a sentence stands alone, with which others report a test F1 of
91.6 to 91.7. No result has been measured here yet.
"""

from ml_collections import ConfigDict

import configs
from configs.finetune import tagging
from configs.finetune.glue import BERT


def get_config(arg: str = "") -> ConfigDict:
    config = tagging.get_config()
    config.name = "conll2003"
    config.data.max_length = 128
    config.optim.update(BERT, learning_rate=5e-5)
    return configs.variant(config, arg)
