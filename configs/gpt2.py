"""GPT-2 (Radford et al. 2019): pre-LN, 1,024 tokens, 50,257 pieces, four sizes.

    python train.py --config=configs/gpt2.py:small     (medium, large, xl)

The paper tells neither rate nor steps. Those of the small one are nanoGPT's: 0.5M
tokens a step, 600,000 steps, 6e-4 to 6e-5, held-out loss about 2.85 on OpenWebText
after 4 days on 8 A100. The larger ones have the peaks that GPT-3's table (Brown et al.
2020, table 2.1) has for the models nearest in size: 350M, 760M and 1.3B parameters,
the last with batches of 1M tokens; they fall to a tenth, as there. The default corpus
is English Wikipedia, which has to be downloaded. With the released vocabulary
(vocab.json and merges.txt in FOLDER): --config.data.tokenizer.path=FOLDER

No run at this size has been measured yet.
"""

from ml_collections import ConfigDict

import configs
from errors import UserError

SIZES = {  # layers, width, peak and end of the rate
    "small": (12, 768, 6e-4, 6e-5),
    "medium": (24, 1024, 3e-4, 3e-5),
    "large": (36, 1280, 2.5e-4, 2.5e-5),
    "xl": (48, 1600, 2e-4, 2e-5),
}


def get_config(arg: str = "small") -> ConfigDict:
    size = "small" if arg in ("", "tiny") else arg
    if size not in SIZES:
        raise UserError(
            f"gpt2 has no size {size!r}: write :small, :medium, :large, :xl or :tiny"
        )
    layers, hidden_size, rate, end_rate = SIZES[size]
    config = ConfigDict()
    config.name = f"gpt2_{size}"
    config.seed = 0
    config.init_from = ""  # a run whose weights, and tokenizer, to go on from
    config.data = ConfigDict(
        {
            # python_docs, pydoc_topics, tfds:NAME, or files: FILE, GLOB, or A,B,...
            "corpus": "tfds:wikipedia/20230601.en",
            "text_field": "text",  # of .jsonl and TFDS, column of .parquet
            "document_boundary": "blank_line",  # or "file", "paragraph", "line"
            "heldout_fraction": 0.001,
            "heldout_tokens": 1_000_000,  # evaluated at most; 0: all
            "shards": "",  # their folder; "" is one in the cache, by content
            "sequence_length": 1024,
            "batch_size": 512,
            "phases": (),  # ordered (first update, what batches have from then on)
        }
    )
    config.data.tokenizer = ConfigDict(
        {
            "path": "",  # bring your own; "" trains one as the other lines say
            "special_tokens": "",  # of it, such as "end_of_text=<eot>", where not found
            "casing": "found",  # of a brought vocab.txt, or "cased", "uncased"
            "algorithm": "byte_bpe",
            "vocab_size": 50_257,
            "lowercase": False,
            "strip_accents": False,
            "unicode_form": "none",
            "sample_bytes": 200_000_000,
        }
    )
    config.model = ConfigDict(
        {
            "family": "gpt",
            "precision": "bfloat16",  # of the matrix products; or "float32"
            "vocab_size": 50_257,
            "max_positions": 1024,
            "num_layers": layers,
            "num_heads": hidden_size // 64,
            "head_dim": 64,
            "hidden_size": hidden_size,
            "ffn_size": 4 * hidden_size,
            "pre_norm": True,
            "activation": "gelu_tanh",
            "norm_epsilon": 1e-5,
            "embedding_dropout": 0.0,
            "table_dropout": False,
            "attention_dropout": 0.0,
            "residual_dropout": 0.0,
            "init_std": 0.02,
            "position_init_std": 0.01,
            "residual_scaling": True,
        }
    )
    config.objective = ConfigDict({"name": "causal_lm"})
    config.optim = ConfigDict(
        {
            "total_steps": configs.amount(600_000),  # or "30B tokens"
            "schedule": "cosine",
            "learning_rate": rate,
            "end_learning_rate": end_rate,
            "warmup_steps": configs.amount(2_000),  # or "1%", or tokens
            "eval_every_steps": configs.amount(5_000),  # as these
            "adam": "adamw",  # or "bert", "gpt1": as their releases compute it
            "b1": 0.9,
            "b2": 0.95,
            "epsilon": 1e-8,
            "weight_decay": 0.1,
            "no_decay": (r".*/bias", r".*/scale"),
            "clip_norm": 1.0,  # 0: off
            "groups": ((".*", {}),),  # ordered (path pattern, own settings)
        }
    )
    config.run = ConfigDict(
        {
            # Devices; -1 is the rest. The batch is cut over data x fsdp, parameters and
            # optimizer over fsdp x tensor.
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "parallel": "jit",  # or "pmap": the whole state on every device
            "data_threads": 2,  # that make batches ahead
            "micro_batches": 16,  # 0: as few as fit the memory
            "logit_chunks": 1,  # parts that the logits are computed in, to save memory
            "remat": "none",  # recomputed: "none", all but "matmuls", all of a "block"
            "fused_attention": False,  # by cuDNN: bfloat16 on a GPU, without dropout
            "log_every_steps": 100,
            "save_every_minutes": 10.0,
            # Such as ("1M words", "300M tokens", "10%"): the weights then, in kept/.
            "keep_weights_at": (),
        }
    )
    return configs.variant(config, "tiny" if arg == "tiny" else "")
