"""Features of a frozen model, as ELMo's are used (Peters et al. 2018, section 3.2-3).

    python finetune.py --config=configs/finetune/features.py:tagging
        --config.init_from=runs/elmo_mini --config.data.train=tags.jsonl

A learnt mean of all layers, with dropout, goes through an LSTM in each direction and a
layer; these alone are trained. Any model will do, whatever its family: BERT's table 7
compares so. The argument is a kind of task (classification where there is none); all
that is not said here is as in that kind's config.
"""

from ml_collections import ConfigDict

import configs
from configs.finetune import OF_KIND
from errors import UserError


def get_config(arg: str = "classification") -> ConfigDict:
    kind = "classification" if arg in ("", "tiny") else arg
    if kind not in OF_KIND:
        raise UserError(
            f"features has no kind {kind!r}: write one of {', '.join(OF_KIND)} after "
            "the file name, or :tiny"
        )
    config = OF_KIND[kind]()
    config.name = f"features_{kind}"
    config.head.update(layers="mix", kind="lstm", dropout=0.5)
    config.optim.groups = ((r"head/.*", {}), (".*", {"frozen": True}))
    config.optim.update(learning_rate=1e-3, epochs=10.0)
    return configs.variant(config, "tiny" if arg == "tiny" else "")
