"""What every experiment shares: the full set of keys with their defaults, and the suite's recipe."""

import math

from ml_collections import ConfigDict


def default() -> ConfigDict:
    """All keys of a run. An experiment changes values; it adds no keys but data sources."""
    return ConfigDict(
        {
            "seed": 0,
            "steps": 1000,
            # A run without a checkpoint of its own takes its parameters from those of this workdir, of a
            # run or of `soda convert from-hf`; also a checkpoint folder, or gs://…
            "start_from": "",
            "start_from_step": -1,  # -1: its newest
            "batch_size": 32,  # windows a step, over all hosts
            "accumulate": 1,  # micro-batches a step; the loss is weighted by tokens
            "model": {
                "layers": 4,
                "width": 256,
                "mlp_width": 768,
                "heads": 4,
                "kv_heads": 4,
                "head_dim": 64,
                "tied": False,
                "norm_eps": 1e-5,
                "rope": {
                    "theta": 500_000.0,
                    "factor": 8.0,
                    "low": 1.0,
                    "high": 4.0,
                    "original_length": 8192,
                },
                "compute_dtype": "bfloat16",
                "remat": "full",  # none, full, attention, dots, offload: soda_jax/model/remat.py
                "attention": "auto",  # the best of the platform; xla: the plain reference
                "unroll": 1,
            },
            "data": {
                "sequence_length": 4096,
                "seed": 0,
                "damaged": "fatal",  # or "mask": keep the places of a damaged record, without loss
                "storage": "auto",  # "direct", "stage", "range"; auto: direct for paths, range for URLs
                "cache_dir": "",  # local folder of staged shards, and of the indexes of remote ones
                "cache_bytes": 256 << 20,  # of records that are read by range, in memory
                "read_threads": 32,  # reads of a host from a store at a time
                "retries": 8,  # of a failed read from a store, for a minute and a half in all
                "sources": {},
            },
            "optimizer": {
                "peak": 3e-3,
                "schedule": "wsd",  # or "cosine"
                "warmup": 0.10,
                "decay": 0.20,
                "beta1": 0.98,
                "beta2": 0.98,
                "eps": 1e-16,
                "weight_decay": 0.033,
                "cautious": True,
                "clip": 1.0,
                "z_loss": 1e-4,
            },
            "loss_chunk": 0,  # tokens whose logits exist at a time, on each device; 0: by platform
            "safety": {
                "spike_factor": 20.0,  # skip a gradient this many times its running norm; 0: never
                "spike_after": 100,  # accepted steps before spikes are looked for
                "max_skipped_in_a_row": 20,
                "stuck_minutes": 30.0,  # without end of a step: write all stacks; 0: never
            },
            # Devices along each axis; one may be -1, the rest, or data and fsdp both: see
            # `parallel.mesh.mesh_sizes`. dcn: slices joined by a slower network, -1 for as many as there are.
            "mesh": {"dcn": 1, "data": -1, "fsdp": 1, "sequence": 1, "tensor": 1},
            "checkpoint": {
                "directory": "checkpoints",  # in the workdir, or another path, or gs://…
                "every_steps": 1000,
                "every_minutes": 30.0,
                "keep": 3,
                "keep_period": 0,
            },
            "evaluate": {"every_steps": 1000, "batches": 16},
            "export": {"every_steps": 0, "dtype": "float32"},  # for Hugging Face; 0: never
            "log": {"every_steps": 1, "tensorboard": True, "wandb_project": ""},
        }
    ).lock()  # a misspelt key in an experiment is an error


def source(
    path: str,
    weight: float,
    *,
    order: str = "both",
    composition: str = "S+A+T",
    codebooks: int = 0,
) -> ConfigDict:
    """A data source: a tokenised dataset and the view under which it is read; 0 codebooks are all."""
    return ConfigDict(
        {
            "path": path,
            "weight": weight,
            "order": order,
            "composition": composition,
            "codebooks": codebooks,
            "denied": "",
            "masked": "",
            "generation": -1,
        }
    )


def suite_sources() -> dict[str, ConfigDict]:
    """The suite's mixture (SODA, data table): 95% speech by tokens in both orders, 5% text."""
    speech = {"yodas2": 131, "emilia_yodas": 73, "emilia": 37}  # billions of tokens
    sources = {
        name: source(f"data/{name}", 0.95 * tokens / sum(speech.values()))
        for name, tokens in speech.items()
    }
    sources["nemotron"] = source("data/nemotron", 0.05, order="text_first", composition="text")
    return sources


def suite_learning_rate(width: int, batch: int = 512) -> float:
    """0.003 · √(batch/256) · √(1024/width) (SODA, training table of the suite)."""
    return 0.003 * math.sqrt(batch / 256) * math.sqrt(1024 / width)


def suite(
    *, width: int, layers: int, mlp_width: int, heads: int, kv_heads: int, head_dim: int
) -> ConfigDict:
    """The recipe of the SODA suite: 500B tokens at 512 × 4096 a step."""
    config = default()
    config.steps = 238_419
    config.batch_size = 512
    config.model.update(
        width=width,
        layers=layers,
        mlp_width=mlp_width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
    )
    config.optimizer.peak = suite_learning_rate(width)
    config.data.sources = ConfigDict(suite_sources())
    config.mesh.update(data=-1, fsdp=-1)
    return config
