"""Speed of the loss and gradients over a large vocabulary: ours, all logits at once, tokamax's.

    python benchmarks/vocabulary_loss.py        # .parity/bin/python has tokamax
    python benchmarks/vocabulary_loss.py --chunks=2048,256,512,1024,4096 --tokens=4096

Ours processes the tokens in chunks and computes the gradients in the same pass; it also returns the loss of
each token, log Z and the z-loss, while tokamax's returns one scalar. tokamax's is a fused kernel on a TPU
and plain products elsewhere. Each chunk size is one side, and the first is the reference. The sides
alternate within a round. Core-seconds are those of this process; other jobs affect them less than
they affect the elapsed time.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _machine import describe_machine
from _results import parse, written

from soda_jax.model import VocabularyBlocks
from soda_jax.model.loss import LossSettings, chunk_tokens, linear_cross_entropy
from soda_jax.progress import track

Side = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def sides(vocabulary: int, chunks: Sequence[int]) -> dict[str, Side]:
    """Returns the sides by name: functions (hidden, head, targets) -> summed loss.

    hidden is `[1, tokens, d]`, head `[vocabulary, d]`, targets `[1, tokens]`.
    """

    def ours(chunk: int, hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
        blocks = (head[None],)
        settings = LossSettings(VocabularyBlocks(vocabulary, ()), chunk=chunk)
        weights = jnp.ones(targets.shape, jnp.float32)
        return linear_cross_entropy(settings, hidden, blocks, targets, weights)[0]

    def whole(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
        logits = jnp.einsum(
            "bsd,vd->bsv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return jnp.sum(jax.nn.logsumexp(logits, axis=-1) - picked)

    found: dict[str, Side] = {
        f"ours, chunks of {chunk:,}": functools.partial(ours, chunk) for chunk in chunks
    }
    found["all logits at once"] = whole
    try:
        import tokamax
    except ImportError:
        return found
    from absl import flags

    if not flags.FLAGS.is_parsed():  # tokamax would parse this program's options
        flags.FLAGS.mark_as_parsed()

    def theirs(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
        weights = head.astype(hidden.dtype).T
        return tokamax.linear_softmax_cross_entropy_loss(hidden[0], targets[0], weights)

    return {**found, "tokamax": theirs}


def main() -> None:
    """Measures and prints the table."""
    accelerator = jax.default_backend() != "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16_384 if accelerator else 2048)
    parser.add_argument("--hidden_size", type=int, default=2048 if accelerator else 256)
    parser.add_argument("--vocabulary", type=int, default=144_896 if accelerator else 16_384)
    parser.add_argument(
        "--chunks",
        type=lambda text: [int(one) for one in text.split(",")],
        default=[chunk_tokens(0, jax.default_backend())],
        help="tokens per chunk of our loss, by default that of the platform; separate several by "
        "commas to compare them",
    )
    parser.add_argument("--rounds", type=int, default=7)
    args = parse(parser, {"rounds": 3})

    kind = jnp.bfloat16 if accelerator else jnp.float32
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(1, args.tokens, args.hidden_size)), kind)
    head = jnp.asarray(0.02 * rng.normal(size=(args.vocabulary, args.hidden_size)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, args.vocabulary, (1, args.tokens)), jnp.int32)
    compiled: dict[str, Any] = {}
    losses: dict[str, float] = {}
    for name, side in sides(args.vocabulary, args.chunks).items():
        function = jax.jit(jax.value_and_grad(side, (0, 1)))
        compiled[name] = function.lower(hidden, head, targets).compile()
        losses[name] = float(compiled[name](hidden, head, targets)[0])
    times: dict[str, list[float]] = {name: [] for name in compiled}
    cores: dict[str, list[float]] = {name: [] for name in compiled}
    for _ in track(range(args.rounds), "rounds"):
        for name, run in compiled.items():
            began, spent = time.perf_counter(), time.process_time()
            jax.block_until_ready(run(hidden, head, targets))
            times[name].append(time.perf_counter() - began)
            cores[name].append(time.process_time() - spent)
    print(
        f"{describe_machine()}; {jax.devices()[0].device_kind}; {args.tokens:,} tokens, d {args.hidden_size}, "
        f"vocabulary {args.vocabulary:,}; {args.rounds} rounds\n"
    )
    print("| loss | value | ms, median | spread | time / ours | core-seconds | temporaries, MB |")
    print("|---|---:|---:|---|---:|---:|---:|")
    first = times[next(iter(times))]
    with written(args.json) as results:
        for name, taken in times.items():
            rates = [args.tokens / seconds for seconds in taken]
            ratio = statistics.median(b / a for a, b in zip(taken, first, strict=True))
            results.add("loss and gradients", name, "tokens_per_second", rates, ratio)
    for name, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(taken, first, strict=True))
        temporaries = compiled[name].memory_analysis().temp_size_in_bytes / 1e6
        low, high = (1e3 * edge(taken) for edge in (min, max))
        print(
            f"| {name} | {losses[name]:.1f} | {1e3 * statistics.median(taken):.0f} | {low:.0f} to {high:.0f} "
            f"| {ratio:.2f} | {statistics.median(cores[name]):.2f} | {temporaries:.0f} |"
        )
    if "tokamax" not in compiled:
        print("\ntokamax is not installed: run this with .parity/bin/python after `make parity`")


if __name__ == "__main__":
    main()
