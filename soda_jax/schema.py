"""The settings of a run: every key of a config with its type, default, bounds and meaning.

`configs/base.py` makes the ml_collections defaults from `RunConfig`, `parse` checks a finished
config against `RunConfig`, and docs/config.md is generated from it. Each component receives only
its section.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from soda_jax.errors import UserError
from soda_jax.schema_fields import named_parts, parse, part, setting, to_dict

__all__ = [
    "CheckpointConfig", "DataConfig", "EvaluateConfig", "ExportConfig", "LogConfig", "MeshConfig",
    "ModelConfig", "OptimizerConfig", "RopeConfig", "RunConfig", "SafetyConfig", "SourceConfig",
    "parse", "run_config", "to_dict",
]  # fmt: skip


# `model` settings that determine the shapes and the meaning of the parameters. All other `model`
# settings affect only how the model is executed.
MODEL_SIZES = (
    "num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim",
)  # fmt: skip
MODEL_SHAPE = (*MODEL_SIZES, "tie_embeddings", "rms_norm_eps")
ROPE_SHAPE = ("theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding with Llama 3 scaling; factor 1 disables the scaling."""

    theta: float = setting(500_000.0, "base of the rotary frequencies", greater_than=0)
    factor: float = setting(
        8.0, "factor that stretches long wavelengths; 1 = no scaling", minimum=1
    )
    low_freq_factor: float = setting(
        1.0,
        "wavelengths above original_max_position / low_freq_factor are stretched",
        greater_than=0,
    )
    high_freq_factor: float = setting(
        4.0,
        "wavelengths below original_max_position / high_freq_factor are unchanged",
        greater_than=0,
    )
    original_max_position: int = setting(
        8192, "context length before scaling, in tokens", minimum=1
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of a Qwen3 decoder, and how it is executed."""

    num_layers: int = setting(4, "decoder layers", minimum=1)
    hidden_size: int = setting(256, "width of the residual stream", minimum=1)
    intermediate_size: int = setting(768, "width of the SwiGLU MLP", minimum=1)
    num_heads: int = setting(4, "query heads; a multiple of num_kv_heads", minimum=1)
    num_kv_heads: int = setting(4, "key and value heads", minimum=1)
    head_dim: int = setting(64, "width of a head; even, for the rotary embedding", minimum=1)
    tie_embeddings: bool = setting(False, "share the weights of the embedding and the output head")
    rms_norm_eps: float = setting(1e-5, "epsilon of every RMSNorm", greater_than=0)
    rope: RopeConfig = part(RopeConfig, "rotary position embedding")
    compute_dtype: str = setting(
        "auto",
        "dtype of activations; parameters are float32. auto = bfloat16, or float32 on a CPU without "
        "bfloat16 instructions",
        choices=("auto", "bfloat16", "float32"),
    )
    remat: str = setting(
        "full",
        "activations the backward pass recomputes, see `soda_jax/model/remat.py`",
        choices=("none", "full", "attention", "dots", "offload"),
    )
    attention: str = setting(
        "auto",
        "attention backend: auto (platform default), xla (no custom kernel), or a registered name",
    )
    unroll: int = setting(1, "layers per iteration of the scan over layers", minimum=1)
    head: str = setting(
        "full",
        "ids over which a target is normalized: full = all; legal = those that can come next",
        choices=("full", "legal"),
    )
    full_every: int = setting(
        0,
        "with head = legal, distance of the positions with the term -log P(legal ids); 0 = none",
        minimum=0,
    )

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_heads = {self.num_heads} is not a multiple of model.num_kv_heads = "
                f"{self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"model.head_dim = {self.head_dim} must be even, for rotary embedding")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """A tokenized data set and the view under which it is read."""

    path: str = setting(doc="folder of the data set, a path or URL")
    weight: float = setting(1.0, "relative share of training windows", greater_than=0)
    order: str = setting(
        "both",
        "order of text and audio in an utterance; both = each document once in each order",
        choices=("text_first", "audio_first", "both"),
    )
    composition: str = setting(
        "S+A+T",
        "tokens of a document: semantic (S), acoustic (A) and text (T)",
        choices=("S+A+T", "S+A", "S", "text"),
    )
    codebooks: int = setting(0, "codebooks per frame; 0 = all", minimum=0)
    exclude_documents: str = setting("", "file of document ids to exclude, one per line")
    mask_records: str = setting("", "file of records to mask in the loss, lines of `SHARD RECORD`")
    generation: int = setting(-1, "generation of the data set; -1 = newest", minimum=-1)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The training mixture and how its shards are read."""

    sequence_length: int = setting(4096, "tokens per window", minimum=2)
    seed: int = setting(0, "seed of the data order", minimum=0)
    on_corrupt_record: str = setting(
        "fatal",
        "fatal = stop at a corrupt record; mask = mask it in the loss",
        choices=("fatal", "mask"),
    )
    storage: str = setting(
        "auto",
        "how shards are read; auto = direct for paths, range for URLs",
        choices=("auto", "direct", "stage", "range"),
    )
    cache_dir: str = setting("", "local folder for staged shards and for indexes of remote ones")
    cache_bytes: int = setting(256 << 20, "memory for records read by range, in bytes", minimum=0)
    read_concurrency: int = setting(32, "maximum concurrent reads per process", minimum=1)
    read_retries: int = setting(
        8, "retries of a failed read from a store, about 90 seconds in total", minimum=0
    )
    sources: Mapping[str, SourceConfig] = named_parts("a data set of the mixture")

    def __post_init__(self) -> None:
        # Sources are sorted, so that their order in the config does not affect the mixture.
        object.__setattr__(self, "sources", dict(sorted(self.sources.items())))


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, learning-rate schedule and z-loss."""

    name: str = setting("adamw", "registered optimizer; adamw uses AdamC weight decay")
    peak_lr: float = setting(3e-3, "learning rate after warmup", greater_than=0)
    schedule: str = setting(
        "wsd",
        "wsd = warmup, stable, linear decay; cosine = warmup, cosine decay",
        choices=("wsd", "cosine"),
    )
    warmup_fraction: float = setting(
        0.10, "fraction of the steps spent warming up", minimum=0, maximum=1
    )
    decay_fraction: float = setting(
        0.20, "fraction of the steps spent decaying (wsd)", minimum=0, maximum=1
    )
    beta1: float = setting(0.98, "decay of Adam's first moment", minimum=0, maximum=1)
    beta2: float = setting(0.98, "decay of Adam's second moment", minimum=0, maximum=1)
    eps: float = setting(1e-16, "epsilon of Adam and of the cautious mask", minimum=0)
    weight_decay: float = setting(0.033, "weight decay at the peak learning rate", minimum=0)
    cautious: bool = setting(True, "keep only updates that agree in sign with the gradient")
    max_grad_norm: float = setting(1.0, "clip the global gradient norm; 0 = never", minimum=0)
    z_loss: float = setting(1e-4, "weight of the z-loss, the mean of log²Z", minimum=0)


@dataclasses.dataclass(frozen=True)
class SafetyConfig:
    """Handling of loss spikes, skipped updates and hangs."""

    spike_factor: float = setting(
        20.0,
        "skip updates whose gradient norm exceeds this factor times its running mean; 0 = never",
        minimum=0,
    )
    spike_after: int = setting(100, "accepted steps before spikes are detected", minimum=0)
    max_skipped_in_a_row: int = setting(
        20, "stop after this many consecutive skipped updates; 0 = never", minimum=0
    )
    stuck_minutes: float = setting(
        30.0,
        "minutes until the stacks are dumped in a hung step; exit after twice that; 0 = never",
        minimum=0,
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 = all that remain, see `soda_jax.parallel.mesh.mesh_sizes`."""

    dcn: int = setting(1, "slices joined by the data-center network; -1 = all", minimum=-1)
    data: int = setting(-1, "data-parallel replicas of the model", minimum=-1)
    fsdp: int = setting(1, "devices over which parameters and batch are sharded", minimum=-1)
    sequence: int = setting(1, "devices over which the sequence is sharded", minimum=-1)
    tensor: int = setting(1, "devices over which heads, MLP and vocabulary are sharded", minimum=-1)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When and where checkpoints are saved."""

    directory: str = setting(
        "checkpoints",
        "folder of the checkpoints, relative to the workdir, or an absolute path or URL",
    )
    every_steps: int = setting(1000, "steps between checkpoints; 0 = by time only", minimum=0)
    every_minutes: float = setting(
        30.0, "minutes between checkpoints; 0 = by steps only", minimum=0
    )
    keep: int = setting(3, "newest checkpoints to keep", minimum=1)
    keep_period: int = setting(
        0, "also keep checkpoints at multiples of this step; 0 = none", minimum=0
    )


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Evaluators during training."""

    every_steps: int = setting(1000, "steps between evaluations; 0 = never", minimum=0)
    batches: int = setting(16, "batches of the held-out loss; 0 = all", minimum=0)
    tasks: str = setting("", "evaluators to run during training, comma-separated, such as nll,asr")
    tasks_every_steps: int = setting(5000, "steps between runs of the evaluators", minimum=1)
    limit: int = setting(64, "items per evaluator", minimum=1)
    max_seconds: float = setting(
        15.0, "maximum seconds of an utterance that an evaluator generates", greater_than=0
    )
    benchmarks: str = setting(
        "", "folders of the data of evaluators, comma-separated, such as swuggy=DIR"
    )


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Hugging Face exports during training."""

    every_steps: int = setting(0, "steps between exports; 0 = never", minimum=0)
    dtype: str = setting("float32", "dtype of exported weights", choices=("float32", "bfloat16"))


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where metrics are logged."""

    every_steps: int = setting(
        1, "steps between lines of metrics.jsonl; 0 = last step only", minimum=0
    )
    metrics: str = setting("", "registered metrics to compute in the step, comma-separated")
    tensorboard: bool = setting(True, "also write TensorBoard files")
    wandb_project: str = setting("", "also log to this Weights & Biases project")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All settings of a training run."""

    seed: int = setting(0, "seed of the initial parameters", minimum=0)
    steps: int = setting(1000, "optimizer steps of the run", minimum=1)
    start_from: str = setting(
        "",
        "take initial parameters from this workdir or checkpoint folder, a path or URL; "
        "ignored if the run has a checkpoint already",
    )
    start_from_step: int = setting(-1, "step of that checkpoint; -1 = newest", minimum=-1)
    batch_size: int = setting(32, "windows per step, over all processes", minimum=1)
    gradient_accumulation: int = setting(
        1, "micro-batches per step; the loss is weighted by tokens", minimum=1
    )
    loss_chunk: int = setting(
        0, "tokens per device in each chunk of the cross-entropy; 0 = platform default", minimum=0
    )
    loss_terms: str = setting("", "registered loss terms to add, comma-separated")
    model: ModelConfig = part(ModelConfig, "decoder")
    data: DataConfig = part(DataConfig, "training data")
    optimizer: OptimizerConfig = part(OptimizerConfig, "optimizer and schedule")
    safety: SafetyConfig = part(SafetyConfig, "loss spikes and hangs")
    mesh: MeshConfig = part(MeshConfig, "device mesh; -1 = all remaining devices")
    checkpoint: CheckpointConfig = part(CheckpointConfig, "checkpoints")
    evaluate: EvaluateConfig = part(EvaluateConfig, "evaluation during training")
    export: ExportConfig = part(ExportConfig, "exports for Hugging Face")
    log: LogConfig = part(LogConfig, "metrics")

    def __post_init__(self) -> None:
        if self.batch_size % self.gradient_accumulation:
            raise UserError(
                f"batch_size = {self.batch_size} is not a multiple of gradient_accumulation = "
                f"{self.gradient_accumulation}"
            )


def run_config(config: Any) -> RunConfig:
    """Returns the checked settings of a run.

    Args:
      config: a `RunConfig`, or an ml_collections ConfigDict or mapping with its keys.

    Raises:
      UserError: see `parse`.
    """
    return parse(RunConfig, config)
