"""Formats the result of `soda plan` for one training step as text and as JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from soda_jax.hardware import GIB
from soda_jax.model.config import DecoderConfig
from soda_jax.model.loss import CHUNKS, LEGAL_CHUNKS, chunk_tokens
from soda_jax.parallel.rules import ways
from soda_jax.plan.compiled import Step
from soda_jax.plan.topologies import Topology
from soda_jax.schema import RunConfig

_MEMORY = (
    ("parameters", "parameters, f32"),
    ("optimizer", "optimizer moments, f32"),
    ("batch", "batch"),
    ("temporaries", "temporaries: activations, gradients, gathered weights"),
    ("code", "program"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome(Step):
    """A planned training step, with the config and topology that it was planned for.

    Attributes:
      topology: the chips and their connections.
      mesh: number of devices along each axis.
      config: settings of the run.
      decoder: config of the decoder.
      price: price per chip hour; None if unknown.
      head_rows: mean number of logits per token; None for a head over all ids.
    """

    topology: Topology
    mesh: Mapping[str, int]
    config: RunConfig
    decoder: DecoderConfig
    price: float | None = None
    head_rows: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that affect memory and speed."""
        return {
            "accumulate": self.config.gradient_accumulation,
            "remat": self.config.model.remat,
            "attention": self.config.model.attention,
            "head": self.config.model.head,
            "loss chunk": chunk_tokens(
                self.config.loss_chunk,
                self.topology.platform,
                CHUNKS if self.head_rows is None else LEGAL_CHUNKS,
            ),
        }

    @property
    def tokens(self) -> int:
        """Number of tokens per step."""
        return self.config.batch_size * self.config.data.sequence_length

    @property
    def model_flops(self) -> float:
        """Model FLOPs of a step with the head that it runs, summed over all devices."""
        sequence = self.config.data.sequence_length
        return self.decoder.training_flops_per_token(sequence, self.head_rows) * self.tokens

    def bounds(self) -> dict[str, float]:
        """Returns a lower bound of the step time in seconds for each resource."""
        chip = self.topology.chip
        parts = chip.devices  # the devices of a chip share its rates
        found = {
            "arithmetic": self.costs.flops * parts / chip.flops,
            "memory": self.costs.bytes * parts / chip.bandwidth,
        }
        if self.costs.host_bytes:
            found["host"] = self.costs.host_bytes * parts / chip.host_link
        links: dict[str, float] = {}
        for axes, sent in self.costs.sent().items():
            beyond = "dcn" in axes if self.topology.is_tpu else self._leaves_node(axes)
            name = "network" if beyond else "links"
            links[name] = links.get(name, 0.0) + sent
        for name, sent in links.items():
            found[name] = sent * parts / (chip.network if name == "network" else chip.link)
        return found

    def _leaves_node(self, axes: tuple[str, ...]) -> bool:
        """Returns whether GPUs that communicate along these axes are in several nodes."""
        node = self.topology.devices // self.topology.domains
        inner, spans = 1, False
        for name in reversed(list(self.mesh)):
            reach = inner * self.mesh[name]
            spans |= name in axes and reach > node
            inner = reach
        return spans

    @property
    def seconds(self) -> float:
        """Roofline in seconds: the largest bound, assuming that all other work overlaps with it."""
        return max(self.bounds().values())

    @property
    def rank(self) -> tuple[float, float, float]:
        """Sort key, best first: the roofline, then the sum of all bounds, then the memory."""
        return round(self.seconds, 3), round(sum(self.bounds().values()), 3), self.memory.total

    @property
    def micro_batch(self) -> tuple[float, float]:
        """Windows per micro-batch on one device, and positions of each window on that device."""
        shards = ways(self.mesh, "batch") * self.config.gradient_accumulation
        positions = self.config.data.sequence_length / ways(self.mesh, "sequence")
        return self.config.batch_size / shards, positions

    @property
    def mfu_bound(self) -> float:
        """Upper bound of the MFU, reached if a step takes exactly as long as the roofline."""
        return self.model_flops / self.seconds / (self.topology.chip.flops * self.topology.chips)

    @property
    def fits(self) -> bool:
        """Whether the step needs no more memory than a program can use on a device."""
        return self.memory.total <= self.topology.memory

    def to_json(self) -> dict[str, Any]:
        """Returns all results as JSON, in bytes, seconds and FLOPs."""
        days = self.config.steps * self.seconds / 86_400
        hours = days * 24 * self.topology.chips
        return {
            "topology": str(self.topology),
            "chips": self.topology.chips,
            "devices": self.topology.devices,
            "source": self.source,
            "compile_seconds": round(self.compile_seconds, 1),
            "mesh": self.mesh,
            "settings": self.settings,
            "micro_batch": list(self.micro_batch),
            "parameters": self.decoder.parameters,
            "non_embedding_parameters": self.decoder.non_embedding_parameters,
            "memory": {**dataclasses.asdict(self.memory), "total": self.memory.total},
            "device_memory": self.topology.memory,
            "fits": self.fits,
            "model_flops": self.model_flops,
            "device_flops": self.costs.flops,
            "kernel_flops": self.costs.kernel_flops,
            "xla_flops_loops_once": self.xla_flops,
            "our_flops_loops_once": self.costs.flops_once,
            "loops_of_unknown_length": self.costs.open_loops,
            "memory_traffic": self.costs.bytes,
            "host_traffic": self.costs.host_bytes,
            "xla_memory_traffic_loops_once": self.xla_bytes,
            "collectives": self._collectives(),
            "bounds_seconds": self.bounds(),
            "roofline_seconds": self.seconds,
            "mfu_bound": self.mfu_bound,
            "tokens_per_second": self.tokens / self.seconds,
            "steps": self.config.steps,
            "tokens": self.config.steps * self.tokens,
            "days": days,
            "chip_hours": hours,
            "cost": None if self.price is None else hours * self.price,
        }

    def _collectives(self) -> list[dict[str, Any]]:
        """Returns one row per kind, mesh axes and group size, sorted by descending bytes."""
        rows: dict[Any, dict[str, Any]] = {}
        for one in self.costs.collectives:
            row: dict[str, Any] = {"axes": list(one.axes), "kind": one.kind}
            row |= {"devices": one.devices, "times": 0, "bytes": 0.0}
            row = rows.setdefault((one.axes, one.kind, one.devices), row)
            row["times"] += one.times
            row["bytes"] += one.bytes * one.times
        return sorted(rows.values(), key=lambda row: -row["bytes"])

    def __str__(self) -> str:
        """Returns the plan as text."""
        value, topology, costs = self.to_json(), self.topology, self.costs
        settings = ", ".join(f"{name} {setting}" for name, setting in self.settings.items())
        lines = [
            f"{topology}, {topology.size}; {self.source}",
            f"mesh {mesh_name(self.mesh)}; {settings}",
            "",
            f"parameters      {self.decoder.parameters:,} ({self.decoder.non_embedding_parameters:,} "
            "without embedding and head)",
            f"batch           {self.config.batch_size:,} × {self.config.data.sequence_length:,} = "
            f"{self.tokens:,} tokens per step",
            "",
            f"memory per device ({topology.memory / GIB:.2f} GiB usable)",
        ]
        for key, kind in _MEMORY:
            lines.append(f"  {getattr(self.memory, key) / GIB:8.2f} GiB  {kind}")
        verdict = "fits" if self.fits else "DOES NOT FIT"
        lines.append(f"  {self.memory.total / GIB:8.2f} GiB  total: {verdict}")
        if self.memory.host:
            lines.append(f"  {self.memory.host / GIB:8.2f} GiB  in host memory")
        lines += [
            "",
            f"FLOPs           {self.model_flops:.3g} model FLOPs, "
            f"{costs.flops * topology.devices:.3g} executed "
            f"({costs.kernel_flops * topology.devices:.3g} in kernels)",
        ]
        if self.xla_flops:
            lines.append(
                f"                per device, loop bodies counted once: {costs.flops_once:.4g} "
                f"(XLA: {self.xla_flops:.4g})"
            )
        if costs.open_loops:
            lines.append(
                f"                {costs.open_loops} loops of unknown trip count, counted once"
            )
        by_xla = ""
        if self.xla_bytes:
            by_xla = f" (XLA: {self.xla_bytes / GIB:,.1f}, loop bodies counted once)"
        lines.append(f"memory traffic  {costs.bytes / GIB:,.1f} GiB per device{by_xla}")
        if costs.host_bytes:
            lines.append(f"host traffic    {costs.host_bytes / GIB:,.2f} GiB per device, both ways")
        for row in value["collectives"]:
            lines.append(
                f"{row['kind']:15} {row['bytes'] / GIB:,.2f} GiB per device over "
                f"{'+'.join(row['axes'])} ({row['devices']} devices, {row['times']:,} times)"
            )
        bounds = ", ".join(f"{name} {time * 1e3:,.0f} ms" for name, time in self.bounds().items())
        lines += [
            "",
            f"bounds          {bounds}",
            f"roofline        {self.seconds * 1e3:,.0f} ms per step: MFU at most "
            f"{100 * self.mfu_bound:.1f}%, {value['tokens_per_second']:,.0f} tokens/s",
            f"run             {self.config.steps:,} steps, {value['tokens'] / 1e9:,.1f}B tokens: "
            f"at least {value['days']:.1f} days, {value['chip_hours']:,.0f} chip hours",
        ]
        if value["cost"] is not None:
            lines.append(
                f"cost            at least {value['cost']:,.0f} at {self.price} per chip hour"
            )
        return "\n".join(lines)


def table(outcomes: Sequence[Outcome], failed: Sequence[tuple[str, str]]) -> str:
    """Returns a table of the outcomes of a search, and a line for each candidate that failed."""
    rows = [
        "| mesh | micro-batch per device | accumulate | remat | memory, GiB | step, ms | limited "
        "by | MFU at most | days |",
        "|---|---:|---:|---|---:|---:|---|---:|---:|",
    ]
    for one in outcomes:
        bounds, (windows, positions) = one.bounds(), one.micro_batch
        rows.append(
            f"| {mesh_name(one.mesh)} | {windows:g} × {positions:,.0f} | {one.settings['accumulate']} "
            f"| {one.settings['remat']} | {one.memory.total / GIB:.1f} | {one.seconds * 1e3:,.0f} "
            f"| {max(bounds, key=bounds.__getitem__)} | {100 * one.mfu_bound:.1f}% "
            f"| {one.config.steps * one.seconds / 86_400:.1f} |"
        )
    rows += [""] * bool(failed) + [f"does not fit: {what}: {why}" for what, why in failed]
    return "\n".join(rows)


def mesh_name(mesh: Mapping[str, int]) -> str:
    """Returns the mesh axes with more than one device as text, such as `data=2 × fsdp=4`."""
    return " × ".join(f"{name}={size}" for name, size in mesh.items() if size > 1) or "1 device"
