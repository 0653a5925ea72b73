"""GPT-1 (Radford et al. 2018): 12 layers x 768, post-LN, 512 tokens, 40,478 pieces.

The paper: BooksCorpus, 100 epochs of 64 x 512 tokens, Adam at 2.5e-4 after 2,000 steps
of warm-up, cosine to 0; about a month on 8 P600 GPUs; token perplexity 18.4. The corpus
is no longer distributed: the default is English Wikipedia, which has to be downloaded.
With the released vocabulary (encoder_bpe_40000.json and vocab_40000.bpe in FOLDER):

    python train.py --config=configs/gpt1.py --config.data.tokenizer.path=FOLDER
        --config.data.corpus='books/*.txt' --config.data.document_boundary=file

No run at this size has been measured yet.
"""

from ml_collections import ConfigDict

import configs


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "gpt1"
    config.seed = 0
    config.init_from = ""  # a run whose weights, and tokenizer, to go on from
    config.data = ConfigDict(
        {
            # python_docs, pydoc_topics, tfds:NAME, or files: FILE, GLOB, or A,B,...
            "corpus": "tfds:wikipedia/20230601.en",
            "text_field": "text",  # of .jsonl and TFDS, column of .parquet
            "document_boundary": "blank_line",  # or "file", "paragraph"
            "heldout_fraction": 0.001,
            "shards": "",  # their folder; "" is one in the cache, by content
            "sequence_length": 512,
            "batch_size": 64,
        }
    )
    config.data.tokenizer = ConfigDict(
        {
            "path": "",  # bring your own; "" trains one as the other lines say
            "algorithm": "byte_bpe",
            "vocab_size": 40_478,
            "lowercase": True,
            "strip_accents": False,
            "unicode_form": "NFC",
            "sample_bytes": 200_000_000,
        }
    )
    config.model = ConfigDict(
        {
            "family": "gpt",
            "vocab_size": 40_478,
            "max_positions": 512,
            "num_layers": 12,
            "num_heads": 12,
            "head_dim": 64,
            "hidden_size": 768,
            "ffn_size": 3072,
            "pre_norm": False,
            "activation": "gelu_tanh",
            "norm_epsilon": 1e-5,
            "embedding_dropout": 0.1,
            "table_dropout": True,
            "attention_dropout": 0.1,
            "residual_dropout": 0.1,
            "init_std": 0.02,
            "position_init_std": 0.02,
            "residual_scaling": False,
        }
    )
    config.objective = ConfigDict({"name": "causal_lm"})
    config.optim = ConfigDict(
        {
            "total_steps": 1_000_000,
            "schedule": "cosine",
            "learning_rate": 2.5e-4,
            "end_learning_rate": 0.0,
            "warmup_steps": 2_000,
            "adam": "adamw",  # or "bert", "gpt1": as their releases compute it
            "b1": 0.9,
            "b2": 0.999,
            "epsilon": 1e-8,
            "weight_decay": 0.01,
            "no_decay": (r".*/bias", r".*/scale"),
            "clip_norm": 1.0,
            "groups": ((".*", {}),),  # ordered (path pattern, own settings)
        }
    )
    config.run = ConfigDict(
        {
            "precision": "bfloat16",  # of the matrix products; or "float32"
            # Devices; -1 is the rest. The batch is cut over data x fsdp, parameters and
            # optimizer over fsdp x tensor.
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "parallel": "jit",  # or "pmap": the whole state on every device
            "data_threads": 2,  # that make batches ahead
            "micro_batches": 1,  # 0: as few as fit the memory
            "logit_chunks": 1,  # parts that the logits are computed in, to save memory
            "remat": "none",  # recomputed: "none", all but "matmuls", all of a "block"
            "fused_attention": False,  # by cuDNN: bfloat16 on a GPU, without dropout
            "log_every_steps": 100,
            "eval_every_steps": 5_000,
            "save_every_minutes": 10.0,
        }
    )
    return configs.variant(config, arg)
