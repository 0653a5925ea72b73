"""The configs of fine-tuning: each is a task, with the settings it claims."""

import pkgutil
from importlib import import_module

import pytest

import configs.finetune
import models
from configs.finetune import glue
from errors import UserError
from tasks import KINDS, splits

# Devlin et al. 2019, appendix A.3, run_classifier.py and optimization.py. The rate is
# chosen on the held-out part: 5e-5 (this one), 3e-5 or 2e-5, for GLUE 4e-5 as well.
BERT = {
    "epochs": 3.0,
    "schedule": "bert_linear",
    "learning_rate": 5e-5,
    "end_learning_rate": 0.0,
    "warmup_fraction": 0.1,
    "adam": "bert",
    "b1": 0.9,
    "b2": 0.999,
    "epsilon": 1e-6,
    "weight_decay": 0.01,
    "no_decay": (r".*/(bias|scale)",),
    "clip_norm": 1.0,
    "groups": ((".*", {}),),
}
# Radford et al. 2018, section 4.1, train.py and opt.py.
GPT1 = BERT | {
    "schedule": "gpt1_linear",
    "learning_rate": 6.25e-5,
    "warmup_fraction": 0.002,
    "adam": "gpt1",
    "epsilon": 1e-8,
}


def test_configs_are_tasks():
    made = []
    for module in pkgutil.iter_modules(configs.finetune.__path__):
        get_config = import_module(f"configs.finetune.{module.name}").get_config
        names = [""]
        if module.name == "glue":
            names = [*glue.TASKS, *(f"{name}:gpt1" for name in glue.TASKS)]
        for name in names:
            tiny = f"{name}:tiny" if name else "tiny"
            made += [get_config(name), get_config(tiny)]
            assert made[-1].name == f"{made[-2].name}_tiny"
    for config in made:
        task = config.task
        assert splits.make_task(config, KINDS[task.kind]).own.keys() == {
            row.name for row in KINDS[task.kind].settings
        }
        assert config.data.max_length <= config.model.max_positions
        assert models.build(config.model.to_dict())
    assert len({config.name for config in made}) == len(made)
    assert {"python_docs", "conll2003", "swag", "rocstories", "glue_mrpc_gpt1"} <= {
        config.name for config in made
    }
    for name in ("imdb", "mrpc:large", ""):
        with pytest.raises(UserError, match="one of cola"):
            glue.get_config(name)


@pytest.mark.parametrize(("name", "published"), [("rte", BERT), ("rte:gpt1", GPT1)])
def test_glue_has_the_published_settings(name, published):
    optim = glue.get_config(name).optim.to_dict()
    assert {key: optim[key] for key in published} == published
