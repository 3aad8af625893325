"""A step's memory, FLOPs and traffic by arithmetic alone, where nothing can be compiled.

It counts the arrays that must exist and the bytes that must move; what a compiler adds is not in it. It
also orders the candidates of a search before they are compiled. docs/plan.md compares it with compiled steps.
"""

import math
from collections.abc import Iterator, Mapping

from soda_jax.model.config import DecoderConfig
from soda_jax.model.flops import training_flops_per_token
from soda_jax.model.loss import chunk_tokens
from soda_jax.parallel import rules
from soda_jax.plan.compiled import Memory
from soda_jax.plan.costs import Collective, Costs
from soda_jax.schema import RunConfig

F32, BF16 = 4, 2
# Traffic of the memory, fitted to the suite's steps as compiled for v5p (the table of docs/plan.md, which a
# test compares with). Times that a layer's values go through it, by what the backward pass computes again;
# bytes a logit; and bytes a number of the head for each chunk of the loss, which reads it and adds to its
# gradient.
# "none" is taken like "dots", "offload" like "full".
_PASSES = {"none": 22.0, "dots": 22.0, "attention": 13.0, "full": 14.0, "offload": 14.0}
_LOGIT, _HEAD = 18.5, 16.0


def estimate_step(
    config: RunConfig, decoder: DecoderConfig, mesh: Mapping[str, int], platform: str
) -> tuple[Memory, Costs]:
    """Returns memory and costs of one device.

    Args:
      config: settings of the run.
      decoder: its model.
      mesh: sizes of the axes; the sharding rules say what each axis splits.
      platform: of the devices.
    """
    rows, sequence, tensor = (_ways(mesh, name) for name in ("batch", "sequence", "mlp"))
    split = _ways(mesh, "embed") * tensor
    tokens = config.batch_size * config.data.sequence_length / rows / sequence
    chunk = min(chunk_tokens(config.loss_chunk, platform), tokens / config.gradient_accumulation)
    micro = tokens / config.gradient_accumulation
    wide = BF16 if decoder.compute_dtype == "bfloat16" else F32
    layer, size = decoder.layer_parameters, decoder.parameters
    vocabulary = decoder.vocabulary.rows * decoder.hidden_size / tensor
    attention = (2 * decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim
    inner = (attention + 3 * decoder.intermediate_size) / tensor + 4 * decoder.hidden_size
    kept = _kept(decoder, mesh, platform, inner)
    # The peak is in the backward pass of a layer or in the loss, never in both at once.
    steady = F32 * size / split + wide * size / split + decoder.num_layers * micro * kept * wide
    gathered = 2 * layer * (1 / split + 1 / tensor)  # weights of two layers
    backward = wide * (gathered + micro * _working(decoder, mesh, platform))
    loss = vocabulary * (wide + F32)  # the head and its gradient, whole width
    loss += 2 * F32 * chunk * decoder.vocabulary.rows / tensor
    loss += 2 * micro * decoder.hidden_size * wide
    temporaries = steady + max(backward, loss)
    memory = Memory(
        parameters=F32 * size / split,
        optimizer=2 * F32 * size / split,
        batch=tokens * 17,
        temporaries=temporaries,
        code=0.0,
        host=decoder.num_layers * micro * decoder.hidden_size * wide
        if decoder.remat == "offload"
        else 0.0,
    )
    chips = math.prod(mesh.values())
    whole = training_flops_per_token(decoder, config.data.sequence_length)
    head = 6.0 * decoder.vocabulary.size * decoder.hidden_size
    again = {"none": 0.0, "dots": 0.0, "attention": 0.3, "full": 1 / 3, "offload": 1 / 3}
    all_tokens = config.batch_size * config.data.sequence_length
    # Of a split sequence the last part sees the most keys, and the other devices wait for its own.
    late = (1 - 1 / sequence) * (whole - 6.0 * decoder.matmul_parameters)
    flops = (whole + late + again[decoder.remat] * (whole + late - head)) * all_tokens / chips
    costs = Costs(flops=flops, flops_once=flops)
    # Weights pass the memory at each use, the state is read and written once.
    costs.bytes = config.gradient_accumulation * 3 * wide * size / tensor + 7 * F32 * size / split
    costs.bytes += decoder.num_layers * tokens * inner * wide * _PASSES[decoder.remat]
    costs.bytes += tokens * decoder.vocabulary.rows / tensor * _LOGIT
    costs.bytes += tokens / chunk * vocabulary * _HEAD
    if decoder.remat == "offload":  # the input of each layer goes out and comes back
        costs.host_bytes = 2 * decoder.num_layers * tokens * decoder.hidden_size * wide
    costs.collectives = list(_exchanges(config, decoder, mesh, wide, tokens))
    return memory, costs


def _ways(mesh: Mapping[str, int], logical_axis: str) -> int:
    """Returns into how many parts `mesh` splits a dimension, by the sharding rules."""
    return math.prod(mesh.get(axis, 1) for axis in rules.RULES[logical_axis])


def _head_columns(decoder: DecoderConfig, platform: str) -> int:
    """Columns that an array of the attention kernel has for each head: on a TPU whole tiles of 128."""
    tile = 128 if platform == "tpu" else 1
    return -(-decoder.head_dim // tile) * tile


def _kept(decoder: DecoderConfig, mesh: Mapping[str, int], platform: str, inner: float) -> float:
    """Numbers for each token and layer that are kept from the forward to the backward pass."""
    results = decoder.num_heads * decoder.head_dim / _ways(mesh, "mlp")
    if (
        platform == "tpu"
    ):  # splash keeps its result and its log-sum in f32, the model the result again
        results += decoder.num_heads * (_head_columns(decoder, platform) + 2) / _ways(mesh, "mlp")
    inputs = (decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim / _ways(mesh, "mlp")
    return {
        "none": 3.4 * inner,  # some of it in f32, as the compiler lays it out
        "dots": results
        + inputs
        + 2 * decoder.intermediate_size / _ways(mesh, "mlp")
        + 3 * decoder.hidden_size,
        "attention": results + decoder.hidden_size,
        "full": float(decoder.hidden_size),
        "offload": 0.0,
    }[decoder.remat]


def _working(decoder: DecoderConfig, mesh: Mapping[str, int], platform: str) -> float:
    """Numbers for each token that exist at a time in the backward pass of one layer.

    Queries, keys, values and results, half of them in two layouts; gate, up and their gradients; five of
    the model's width, and with "offload" eight more for copies under way (from one compiled step).
    """
    columns = _head_columns(decoder, platform)
    attention = 1.5 * 2 * (decoder.num_heads + decoder.num_kv_heads) * columns
    widths = 13 if decoder.remat == "offload" else 5
    return (attention + 4 * decoder.intermediate_size) / _ways(
        mesh, "mlp"
    ) + widths * decoder.hidden_size


def _exchanges(
    config: RunConfig,
    decoder: DecoderConfig,
    mesh: Mapping[str, int],
    wide: int,
    tokens: float,
) -> Iterator[Collective]:
    """Yields the collectives of a step, axis by axis, by what the sharding rules say it splits."""
    sequence, tensor, layers = _ways(mesh, "sequence"), _ways(mesh, "mlp"), decoder.num_layers
    weights = wide * decoder.parameters / tensor
    gradients = 2 * weights / _ways(mesh, "embed")
    keys_values = 2 * decoder.num_kv_heads * decoder.head_dim / tensor
    accumulation = config.gradient_accumulation
    for axis, split in rules.MESH_AXES.items():
        count = mesh.get(axis, 1)
        if count == 1:
            continue
        exchanges: list[tuple[str, float, int]] = []
        if "embed" in split:
            exchanges.append(("all-gather", weights, 2 * accumulation))
            exchanges.append(("reduce-scatter", weights, accumulation))
        elif "batch" in split:
            exchanges.append(("all-reduce", gradients, accumulation))
        if "mlp" in split:
            exchanges.append(("all-reduce", 2 * wide * tokens * decoder.hidden_size, 4 * layers))
        if "sequence" in split:
            exchanges.append(("all-gather", wide * tokens * sequence * keys_values, 3 * layers))
        for kind, size, times in exchanges:
            yield Collective(kind, (axis,), count, size * (count - 1) / count, times)
