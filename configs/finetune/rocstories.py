"""Which ending does a story have? Story Cloze of ROCStories (Mostafazadeh et al. 2016).

    python finetune.py --config=configs/finetune/rocstories.py
        --config.init_from=runs/gpt_mini
        --config.data.train=cloze_test_val__spring2016.csv
        --config.data.test=cloze_test_test__spring2016.csv

Trained on the 1,871 stories of the validation file, whose training stories have no
wrong endings; 374 of them are held out, as many as in GPT-1's release. GPT-1's settings
(Radford et al. 2018, section 4.1): 3 epochs of 32 at 6.25e-5, auxiliary language model
0.5, on both endings. Accuracy on the test file: 86.5 in the paper, 85.8 the median of
10 runs of the release. No result has been measured here yet.
"""

from ml_collections import ConfigDict

import configs
from configs.finetune import glue, topic


def get_config(arg: str = "") -> ConfigDict:
    config = topic.get_config()
    config.name = "rocstories"
    config.task.update(
        kind="choice",
        text_columns=tuple(f"InputSentence{number}" for number in (1, 2, 3, 4)),
        answer_columns=("RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2"),
        label_column="AnswerRightEnding",
        labels=("1", "2"),
    )
    config.data.update(eval_fraction=0.2, max_length=128, batch_size=32)
    glue.use_gpt1(config)
    return configs.variant(config, arg)
