"""Estimates memory, FLOPs and traffic of a training step without compiling it.

The estimate counts the arrays that any implementation needs in memory and the bytes that it moves;
the compiled program may use more. The coefficients of the memory traffic are fitted to compiled
steps. `soda plan --search` sorts its candidates by the estimates; docs/plan.md compares them with
compiled steps.
"""

import math
from collections.abc import Iterator, Mapping

from soda_jax.model.config import DecoderConfig
from soda_jax.model.loss import LEGAL_CHUNKS, chunk_tokens
from soda_jax.parallel import rules
from soda_jax.parallel.rules import ways
from soda_jax.plan.compiled import Memory, Step
from soda_jax.plan.costs import Collective, Costs
from soda_jax.schema import RunConfig

F32, BF16 = 4, 2
# Coefficients of the memory traffic, fitted to the steps of the SODA suite compiled for v5p (the
# table in docs/plan.md, which a test checks). _PASSES: how often the activations of a layer are
# read or written, by remat policy ("none" uses the value of "dots", "offload" that of "full").
# _LOGIT: bytes per logit. _HEAD: bytes per head parameter for each chunk of the loss, which reads
# the head and accumulates its gradient.
_PASSES = {"none": 22.0, "dots": 22.0, "attention": 13.0, "full": 14.0, "offload": 14.0}
_LOGIT, _HEAD = 18.5, 16.0
# FLOPs that remat adds, as a fraction of the training FLOPs of the layers. Recomputing the whole
# forward pass adds 1/3.
_RECOMPUTED = {"none": 0.0, "dots": 0.0, "attention": 0.3, "full": 1 / 3, "offload": 1 / 3}


def estimate_step(
    config: RunConfig,
    decoder: DecoderConfig,
    mesh: Mapping[str, int],
    platform: str,
    text_share: float = 0.0,
) -> Step:
    """Returns the estimated memory and costs of a training step on one device.

    Args:
      config: settings of the run.
      decoder: config of the decoder.
      mesh: number of devices along each axis; `rules.MESH_AXES` defines what each axis splits.
      platform: platform of the devices.
      text_share: share of the positions that are normalized over text, for `model.head` = "legal".
    """
    rows = head_rows(config, decoder, text_share)
    sequence, tensor = ways(mesh, "sequence"), ways(mesh, "mlp")
    split = ways(mesh, "embed") * tensor
    tokens = config.batch_size * config.data.sequence_length / ways(mesh, "batch") / sequence
    micro = tokens / config.gradient_accumulation
    chunk = min(chunk_tokens(config.loss_chunk, platform), micro)
    # Share of the tokens in chunks that multiply the whole first block of the head.
    chunked = 1.0
    if rows is not None:
        chunk = min(chunk_tokens(config.loss_chunk, platform, LEGAL_CHUNKS), micro)
        chunked = text_share + 1 / (config.model.full_every or math.inf)
    wide = BF16 if decoder.dtype(platform, math.prod(mesh.values())) == "bfloat16" else F32
    layer, size = decoder.layer_parameters, decoder.parameters
    vocabulary = decoder.vocabulary.rows * decoder.hidden_size / tensor
    attention = (2 * decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim
    inner = (attention + 3 * decoder.intermediate_size) / tensor + 4 * decoder.hidden_size
    kept = _kept(decoder, tensor, platform, inner)
    # Memory peaks either in the backward pass of a layer or in the loss, never in both at once.
    steady = F32 * size / split + wide * size / split + decoder.num_layers * micro * kept * wide
    gathered = 2 * layer * (1 / split + 1 / tensor)  # weights of two layers
    backward = wide * (gathered + micro * _working(decoder, tensor, platform))
    loss = vocabulary * (wide + F32)  # the head and its gradient, gathered over `embed`
    loss += 2 * F32 * chunk * decoder.vocabulary.rows / tensor
    if rows is not None:  # logits and their gradient of all positions over one codebook each
        loss += 2 * F32 * micro * decoder.vocabulary.group_rows / tensor
    loss += 2 * micro * decoder.hidden_size * wide
    inputs = decoder.num_layers * decoder.hidden_size * wide  # bytes per token, all layers
    memory = Memory(
        parameters=F32 * size / split,
        optimizer=2 * F32 * size / split,
        batch=tokens * 17,  # in a Batch, a token has four 4-byte fields and one of 1 byte
        temporaries=steady + max(backward, loss),
        code=0.0,
        host=inputs * micro if decoder.remat == "offload" else 0.0,
    )
    whole = decoder.training_flops_per_token(config.data.sequence_length, rows)
    logits = decoder.vocabulary.size if rows is None else rows
    head = 6.0 * logits * decoder.hidden_size
    all_tokens = config.batch_size * config.data.sequence_length
    # The last shard of a split sequence has the most keys, and the other devices wait for it.
    products = decoder.matmul_parameters - decoder.vocabulary.size * decoder.hidden_size
    late = (1 - 1 / sequence) * (whole - head - 6.0 * products)
    flops = whole + late + _RECOMPUTED[decoder.remat] * (whole + late - head)
    flops = flops * all_tokens / math.prod(mesh.values())
    costs = Costs(flops=flops, flops_once=flops)
    # Weights are read at each use. The training state is read and written once per step.
    costs.bytes = config.gradient_accumulation * 3 * wide * size / tensor + 7 * F32 * size / split
    costs.bytes += decoder.num_layers * tokens * inner * wide * _PASSES[decoder.remat]
    rows_here = decoder.vocabulary.rows if rows is None else rows
    costs.bytes += tokens * rows_here / tensor * _LOGIT
    costs.bytes += chunked * tokens / chunk * vocabulary * _HEAD
    if decoder.remat == "offload":  # the inputs of the layers are written to the host and read back
        costs.host_bytes = 2 * inputs * tokens
    costs.collectives = list(_collectives(config, decoder, mesh, wide, tokens))
    return Step(memory=memory, costs=costs, source="analytical estimate, not compiled")


def head_rows(config: RunConfig, decoder: DecoderConfig, text_share: float) -> float | None:
    """Returns the mean number of logits per token of a head over legal ids, None for all ids.

    Positions that are not normalized over text are counted as those of a codebook.
    """
    if config.model.head == "full":
        return None
    vocabulary = decoder.vocabulary
    rows = text_share * vocabulary.first_rows + (1 - text_share) * vocabulary.group_rows
    if config.model.full_every:
        rows += vocabulary.size / config.model.full_every
    return rows


def _head_columns(decoder: DecoderConfig, platform: str) -> int:
    """Returns head_dim as in the attention kernel, which on a TPU pads it to a multiple of 128."""
    tile = 128 if platform == "tpu" else 1
    return -(-decoder.head_dim // tile) * tile


def _kept(decoder: DecoderConfig, tensor: int, platform: str, inner: float) -> float:
    """Returns the number of elements per token and layer that are saved for the backward pass."""
    results = decoder.num_heads * decoder.head_dim
    if platform == "tpu":
        # Splash saves its result, and the logsumexp in f32. The model saves the result again.
        results += decoder.num_heads * (_head_columns(decoder, platform) + 2)
    inputs = (decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim
    dots = (results + inputs + 2 * decoder.intermediate_size) / tensor
    return {
        "none": 3.4 * inner,  # XLA stores some of them in f32
        "dots": dots + 3 * decoder.hidden_size,
        "attention": results / tensor + decoder.hidden_size,
        "full": float(decoder.hidden_size),
        "offload": 0.0,
    }[decoder.remat]


def _working(decoder: DecoderConfig, tensor: int, platform: str) -> float:
    """Returns the number of elements per token that are live in the backward pass of one layer.

    Counts queries, keys, values and attention results, half of which exist in two layouts;
    gate, up and their gradients; and five vectors of hidden_size. "offload" adds eight such vectors
    for copies in flight (measured on one compiled step).
    """
    heads = decoder.num_heads + decoder.num_kv_heads
    attention = 1.5 * 2 * heads * _head_columns(decoder, platform)
    rows = 13 if decoder.remat == "offload" else 5
    return (attention + 4 * decoder.intermediate_size) / tensor + rows * decoder.hidden_size


def _collectives(
    config: RunConfig, decoder: DecoderConfig, mesh: Mapping[str, int], wide: int, tokens: float
) -> Iterator[Collective]:
    """Yields the collectives that a step needs over each mesh axis, given what the axis splits."""
    sequence, tensor, layers = ways(mesh, "sequence"), ways(mesh, "mlp"), decoder.num_layers
    weights = wide * decoder.parameters / tensor
    gradients = 2 * weights / ways(mesh, "embed")
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
