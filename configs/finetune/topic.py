"""Documents into topics, or any texts into classes: the user names the file.

    python finetune.py --config=configs/finetune/topic.py
        --config.init_from=runs/bert_mini --config.data.train=topics.tsv

The file (.tsv, .csv, .jsonl, .parquet, with .gz if you like, or tfds:NAME@SPLIT) has
the columns `text` and `label`; labels are names. Rates: the old layers move at 1e-3,
the new head ten times as fast, for models that have read for minutes: on six topics of
newsgroups 1e-4 is right on 46 %, 3e-4 on 66, 1e-3 on 82 and 3e-3 on 87. With 200
labels models that have read for an hour want 3e-4 to 1e-3 and, of texts longer than a
few lines, head.pooling="mean": 0.67 instead of 0.62 (docs/results.md). BERT-base and up
want 2e-5 to 5e-5.
"""

from ml_collections import ConfigDict

import configs


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "topic"
    config.seed = 0
    config.init_from = ""  # a run folder; "" or "None" trains `model` from scratch
    config.load_weights = True  # False: the model of init_from with fresh weights
    # Patterns of whole paths that may be new, or have no place here.
    config.allow_missing = ()
    config.task = ConfigDict(
        {
            # "classification", "similarity", "choice", "tagging", "span"
            "kind": "classification",
            "text_columns": ("text",),  # two of them are a pair
            "label_column": "label",
            "labels": (),  # in the order of their ids; () learns them from the data
            "positive_label": "",  # whose F1 is measured; "": the last of two labels
            "question_columns": (),  # of choice and span
            "answer_columns": (),  # of choice: one with a list, or one for each answer
            "null_answers": False,  # span: "" where no answer scores better
            # span: the token that stands for no answer: the one that is read out, [CLS]
            # or a decoder's last; "first" is for decoders that were trained so before.
            "null_position": "readout",
            "metric": "accuracy",  # whose best checkpoint is kept
        }
    )
    config.data = ConfigDict(
        {
            "train": "",  # a labelled file, or tfds:NAME@SPLIT
            "eval": "",  # "" holds out a part of train
            "eval_fraction": 0.1,
            "test": "",  # predicted at the end, with labels or without
            "train_examples": 0,  # so many drawn by the seed; 0 is all
            "max_length": 64,  # pieces of a sequence, special tokens included
            "max_question_length": 64,  # span
            "window_stride": 128,  # span
            "batch_size": 32,  # examples, on average
            "packed": True,  # several examples a row; False: one
        }
    )
    config.data.tokenizer = ConfigDict(
        {  # where init_from is ""
            "path": "",  # bring your own; "" learns one from the training texts
            "special_tokens": "",  # of it, such as "end_of_text=<eot>", where not found
            "casing": "found",  # of a brought vocab.txt, or "cased", "uncased"
            "algorithm": "wordpiece",
            "lowercase": True,
            "strip_accents": True,
            "unicode_form": "NFC",
            "sample_bytes": 20_000_000,
        }
    )
    config.model = ConfigDict(
        {  # precision and the three dropout rates hold for models of init_from as well
            "family": "bert",
            "precision": "float32",  # of the matrix products; or "bfloat16"
            "vocab_size": 8192,
            "max_positions": 128,
            "num_token_types": 2,
            "num_layers": 4,
            "num_heads": 4,
            "head_dim": 64,
            "hidden_size": 256,
            "ffn_size": 1024,
            "activation": "gelu_tanh",
            "norm_epsilon": 1e-12,
            "embedding_dropout": 0.1,
            "attention_dropout": 0.1,
            "residual_dropout": 0.1,
            "init_std": 0.02,
            "truncated_init": True,
            "pooler": False,
            "masked_lm_head": False,
            "next_sentence_head": False,
        }
    )
    config.head = ConfigDict(
        {
            "dropout": 0.1,
            "layers": "last",  # or "mix": a learnt mean of all (ELMo)
            "pooling": "readout",  # [CLS], a decoder's last token; or the "mean" of all
            "mix_penalty": 0.001,  # of its squared weights; 1: nearly the plain mean
            "kind": "linear",  # or "lstm": one in each direction below the layer
            "size": 256,  # of that
        }
    )
    config.objective = ConfigDict(
        {
            "lm_weight": 0.0,  # of the auxiliary language model; GPT-1: 0.5
            "lm_per_sequence": False,  # a decoder's: mean of sequences (GPT-1's code)
            "mask_rate": 0.15,  # of an encoder's, which is a masked one
        }
    )
    config.optim = ConfigDict(
        {
            "epochs": 3.0,
            "eval_every_epochs": 1.0,
            "patience": 0,  # evaluations without a new best that end it; 0: never
            "schedule": "linear",
            "learning_rate": 1e-3,  # released models: 2e-5
            "end_learning_rate": 0.0,
            "warmup_fraction": 0.1,
            "adam": "adamw",  # or "bert", "gpt1": as their releases compute it
            "b1": 0.9,
            "b2": 0.999,
            "epsilon": 1e-6,
            "weight_decay": 0.01,
            "no_decay": (r".*/(bias|scale)",),
            "clip_norm": 1.0,  # 0: off
            # Ordered (path pattern, own settings); the first that matches counts.
            "groups": ((r"head/.*", {"multiplier": 10.0}), (".*", {})),
            # Rates that fall by layer, instead of the group ".*": decay 0.8 and
            # top_exponent 2 are ELECTRA's, 1 / 2.6 and 1 ULMFiT's; thaw_every N steps.
            "layerwise": {"decay": 1.0, "top_exponent": 1, "thaw_every": 0},
        }
    )
    config.run = ConfigDict(
        {
            # Devices; -1 is the rest. The batch is cut over data x fsdp, parameters and
            # optimizer over fsdp x tensor.
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "parallel": "jit",  # or "pmap": the whole state on every device
            "data_threads": 2,  # that make batches ahead
            "micro_batches": 1,  # 0: as few as fit the memory
            "logit_chunks": 1,  # parts that the logits are computed in, to save memory
            "remat": "none",  # recomputed: "none", all but "matmuls", all of a "block"
            "fused_attention": False,  # by cuDNN: bfloat16 on a GPU, without dropout
            "log_every_steps": 20,
            "save_every_minutes": 10.0,
        }
    )
    return configs.variant(config, arg)
