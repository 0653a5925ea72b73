"""What transformers calls the parameters and settings of the models here.

One table a model type, read in both directions. Sources: modeling_bert.py,
modeling_gpt2.py and modeling_openai.py of transformers, and their configurations.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from configs import bert_base, gpt1, gpt2
from data.tokenizers import GPT_SPECIAL_TOKENS

Shape = tuple[int, ...]
Flat = dict[str, np.ndarray]  # parameters by path, "layer_0/attention/query/kernel"


class Row(NamedTuple):
    """A module here and there; `{}` is the number of a layer."""

    here: str
    there: str
    form: str  # of FORMS
    third: int | None = None  # it is that third of the output columns there


# What the arrays of a module are called here and there.
FORMS = {
    "table": {"embedding": "weight"},
    "norm": {"scale": "weight", "bias": "bias"},
    "linear": {"kernel": "weight", "bias": "bias"},  # PyTorch's kernel is [out, in]
    "conv1d": {"kernel": "weight", "bias": "bias"},  # OpenAI's is [in, out]
    "bias": {"bias": "bias"},
}
BERT_LAYER = "encoder.layer.{}"
BERT_ROWS = (
    Row("embeddings/token", "embeddings.word_embeddings", "table"),
    Row("embeddings/position", "embeddings.position_embeddings", "table"),
    Row("embeddings/token_type", "embeddings.token_type_embeddings", "table"),
    Row("embeddings/norm", "embeddings.LayerNorm", "norm"),
    Row("layer_{}/attention/query", f"{BERT_LAYER}.attention.self.query", "linear"),
    Row("layer_{}/attention/key", f"{BERT_LAYER}.attention.self.key", "linear"),
    Row("layer_{}/attention/value", f"{BERT_LAYER}.attention.self.value", "linear"),
    Row("layer_{}/attention/output", f"{BERT_LAYER}.attention.output.dense", "linear"),
    Row("layer_{}/attention_norm", f"{BERT_LAYER}.attention.output.LayerNorm", "norm"),
    Row("layer_{}/feed_forward/up", f"{BERT_LAYER}.intermediate.dense", "linear"),
    Row("layer_{}/feed_forward/down", f"{BERT_LAYER}.output.dense", "linear"),
    Row("layer_{}/feed_forward_norm", f"{BERT_LAYER}.output.LayerNorm", "norm"),
    Row("pooler", "pooler.dense", "linear"),
    Row("head/pooler", "pooler.dense", "linear"),
    Row("masked_lm/transform", "cls.predictions.transform.dense", "linear"),
    Row("masked_lm/norm", "cls.predictions.transform.LayerNorm", "norm"),
    Row("masked_lm", "cls.predictions", "bias"),
    Row("next_sentence", "cls.seq_relationship", "linear"),
)
GPT_LAYER_ROWS = (
    Row("layer_{}/attention/query", "h.{}.attn.c_attn", "conv1d", 0),
    Row("layer_{}/attention/key", "h.{}.attn.c_attn", "conv1d", 1),
    Row("layer_{}/attention/value", "h.{}.attn.c_attn", "conv1d", 2),
    Row("layer_{}/attention/output", "h.{}.attn.c_proj", "conv1d"),
    Row("layer_{}/attention_norm", "h.{}.ln_1", "norm"),
    Row("layer_{}/feed_forward/up", "h.{}.mlp.c_fc", "conv1d"),
    Row("layer_{}/feed_forward/down", "h.{}.mlp.c_proj", "conv1d"),
    Row("layer_{}/feed_forward_norm", "h.{}.ln_2", "norm"),
)
GPT2_ROWS = (
    Row("embeddings/token", "wte", "table"),
    Row("embeddings/position", "wpe", "table"),
    *GPT_LAYER_ROWS,
    Row("final_norm", "ln_f", "norm"),
)
GPT1_ROWS = (
    Row("embeddings/token", "tokens_embed", "table"),
    Row("embeddings/position", "positions_embed", "table"),
    *GPT_LAYER_ROWS,
)


@dataclasses.dataclass(frozen=True)
class Format:
    """How transformers keeps the models of a `model_type`.

    Attributes:
        config: the config of train.py that a run of it begins with.
        fields: what holds of `model` in all of them.
        prefix: of the weights, except in the class without heads.
        tied: weights that are only a second name for another one.
        settings: field of `model` -> key of config.json.
        activations: key of config.json, and its values in terms of `model.activation`;
            the first that says a thing is the one written.
        fixed: the only value of a key of config.json that the model here can have.
        lacks: special tokens that no vocabulary of them has, and fine-tuning frames
            its sequences with.
        lesser_objective: of a model without all the heads that the config's needs.
    """

    config: Callable[[], ConfigDict]
    fields: dict[str, Any]
    prefix: str
    rows: tuple[Row, ...]
    tied: dict[str, str]
    settings: dict[str, str]
    activations: tuple[str, dict[str, str]]
    fixed: dict[str, Any]
    lacks: tuple[str, ...] = ()
    lesser_objective: str = ""


GELUS = {
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
GPT_SETTINGS = {
    "vocab_size": "vocab_size",
    "max_positions": "n_positions",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "hidden_size": "n_embd",
    "norm_epsilon": "layer_norm_epsilon",
    "embedding_dropout": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
    "residual_dropout": "resid_pdrop",
    "init_std": "initializer_range",
}
FORMATS = {
    "bert": Format(
        config=bert_base.get_config,
        fields={"family": "bert"},
        prefix="bert.",
        rows=BERT_ROWS,
        tied={
            "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        settings={
            "vocab_size": "vocab_size",
            "max_positions": "max_position_embeddings",
            "num_token_types": "type_vocab_size",
            "num_layers": "num_hidden_layers",
            "num_heads": "num_attention_heads",
            "hidden_size": "hidden_size",
            "ffn_size": "intermediate_size",
            "norm_epsilon": "layer_norm_eps",
            "embedding_dropout": "hidden_dropout_prob",
            "attention_dropout": "attention_probs_dropout_prob",
            "residual_dropout": "hidden_dropout_prob",
            "init_std": "initializer_range",
        },
        activations=("hidden_act", GELUS),
        fixed={
            "is_decoder": False,
            "add_cross_attention": False,
            "position_embedding_type": "absolute",
            "tie_word_embeddings": True,
        },
        lesser_objective="masked_lm",
    ),
    "gpt2": Format(
        config=gpt2.get_config,
        fields={"family": "gpt", "pre_norm": True, "table_dropout": False},
        prefix="transformer.",
        rows=GPT2_ROWS,
        tied={"lm_head.weight": "wte.weight"},
        settings=GPT_SETTINGS | {"ffn_size": "n_inner"},
        activations=("activation_function", GELUS),
        fixed={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        },
        lacks=GPT_SPECIAL_TOKENS[1:],
    ),
    "openai-gpt": Format(
        config=gpt1.get_config,
        # OpenAI dropped elements of the table; transformers drops those of the sum.
        fields={"family": "gpt", "pre_norm": False, "table_dropout": False},
        prefix="transformer.",
        rows=GPT1_ROWS,
        tied={"lm_head.weight": "tokens_embed.weight"},
        settings=GPT_SETTINGS,
        activations=("afn", {"gelu": "gelu_tanh", "relu": "relu"}),  # its own names
        fixed={"tie_word_embeddings": True},
        lacks=GPT_SPECIAL_TOKENS[1:],
    ),
}
# transformers' values of what a config.json need not say.
IF_ABSENT = {
    "model_type": None,
    "architectures": None,
    "id2label": None,
    "problem_type": None,
    "classifier_dropout": None,
    "layer_norm_eps": 1e-12,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "activation_function": "gelu_new",
    "n_inner": None,
}
# What a config.json may say of a checkpoint, beside the model's settings.
TYPES = {
    "model_type": (str, "a text"),
    "architectures": (list, "a list of names"),
    "id2label": (dict, "an object of names by number"),
}
# What training puts around a model, and its names before all others when it is saved.
WRAPPERS = ("_orig_mod.", "module.")  # torch.compile, DistributedDataParallel
# Masks and counters that older versions saved with the weights.
BUFFERS = r"embeddings\.(position|token_type)_ids|h\.\d+\.attn\.(bias|masked_bias)"


class Architecture(NamedTuple):
    """A class of transformers, and what it is here."""

    name: str
    model_type: str
    kind: str  # of task; "" is pre-training
    head: str  # what `head/dense` is called there
    modules: tuple[str, ...] = ()  # heads of pre-training that it has


PRETRAINING = ("masked_lm", "next_sentence", "pooler")
POOLED = ("pooler",)
CHOICE_HEAD = "multiple_choice_head.summary"
# In the order in which a run that has the modules finds its class.
ARCHITECTURES = (
    Architecture("BertForPreTraining", "bert", "", "", PRETRAINING),
    Architecture("BertForMaskedLM", "bert", "", "", ("masked_lm",)),
    Architecture("BertForNextSentencePrediction", "bert", "", "", PRETRAINING[1:]),
    Architecture("BertModel", "bert", "", "", POOLED),
    *(
        Architecture(
            "BertForSequenceClassification", "bert", kind, "classifier", POOLED
        )
        for kind in ("classification", "similarity")  # of one label: a number
    ),
    Architecture("BertForMultipleChoice", "bert", "choice", "classifier", POOLED),
    Architecture("BertForTokenClassification", "bert", "tagging", "classifier"),
    Architecture("BertForQuestionAnswering", "bert", "span", "qa_outputs"),
    Architecture("GPT2LMHeadModel", "gpt2", "", ""),
    Architecture("GPT2Model", "gpt2", "", ""),
    Architecture("GPT2ForTokenClassification", "gpt2", "tagging", "classifier"),
    Architecture("GPT2ForQuestionAnswering", "gpt2", "span", "qa_outputs"),
    Architecture("GPT2DoubleHeadsModel", "gpt2", "choice", CHOICE_HEAD),
    Architecture("OpenAIGPTLMHeadModel", "openai-gpt", "", ""),
    Architecture("OpenAIGPTModel", "openai-gpt", "", ""),
    Architecture("OpenAIGPTDoubleHeadsModel", "openai-gpt", "choice", CHOICE_HEAD),
)
BARE = ("BertModel", "GPT2Model", "OpenAIGPTModel")  # their weights have no prefix


class Place(NamedTuple):
    """Where an array is there: the name, and what was done to it."""

    name: str
    transposed: bool
    third: int | None

    def shape(self, here: Shape) -> Shape:
        """The shape there of an array of shape `here`."""
        if self.third is not None:
            return (*here[:-1], 3 * here[-1])
        return here[::-1] if self.transposed else here


def rows_of(architecture: Architecture) -> tuple[Row, ...]:
    """The names of a class: those of its type, and its head's."""
    rows = FORMATS[architecture.model_type].rows
    return (*rows, Row("head/dense", architecture.head, "linear"))


def find(path: str, rows: Iterable[Row]) -> Place:
    """Where the array of the path is there."""
    for row in rows:
        for here, there in FORMS[row.form].items():
            pattern = f"{row.here}/{here}".replace("{}", r"(\d+)")
            if match := re.fullmatch(pattern, path):
                name = f"{row.there}.{there}".format(*match.groups())
                return Place(name, row.form == "linear" and here == "kernel", row.third)
    raise AssertionError(f"no row for {path}")


def normal_name(name: str, form: Format) -> str:
    """The name without its prefix, and with the norms' names of after 2019."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name.removeprefix(form.prefix))


def pretraining_heads(
    architecture: Architecture, weights: Iterable[str]
) -> dict[str, bool]:
    """BERT's heads that the class must have, and those of which anything is there."""
    if architecture.model_type != "bert":
        return {}
    needed = {*architecture.modules}
    if architecture.name == "BertModel":
        needed.clear()  # it may be without its pooler
    for row in BERT_ROWS:
        module = row.here.split("/")[0]
        if any(name.startswith(f"{row.there}.") for name in weights):
            needed.add(module)
    fields = {f"{name}_head": name in needed for name in ("masked_lm", "next_sentence")}
    return fields | {"pooler": "pooler" in needed}
