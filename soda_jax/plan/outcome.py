"""What a plan says: the figures of a step on a topology, as a page and as one JSON object."""

import dataclasses
import math
from typing import Any

from soda_jax.model.config import DecoderConfig
from soda_jax.model.flops import training_flops_per_token
from soda_jax.parallel.rules import RULES
from soda_jax.plan.compiled import Memory
from soda_jax.plan.costs import Costs
from soda_jax.plan.topologies import Topology


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A step of a config on a topology.

    Attributes:
      topology: the machines.
      mesh: sizes of the axes.
      settings: batch, accumulation, sequence, remat, attention, and what else was chosen.
      decoder: the model.
      memory: of one device.
      costs: of one device.
      steps: of the run.
      batch, sequence: of a step.
      source: how the figures were found.
      compile_seconds: 0 for an estimate.
      xla_flops, xla_bytes: of XLA's analysis, loops counted once; 0 for an estimate.
      price: of one chip for one hour, None if unknown.
    """

    topology: Topology
    mesh: dict[str, int]
    settings: dict[str, Any]
    decoder: DecoderConfig
    memory: Memory
    costs: Costs
    steps: int
    batch: int
    sequence: int
    source: str
    compile_seconds: float = 0.0
    xla_flops: float = 0.0
    xla_bytes: float = 0.0
    price: float | None = None

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.sequence

    @property
    def model_flops(self) -> float:
        """FLOPs of a step that the MFU counts, all devices together."""
        return training_flops_per_token(self.decoder, self.sequence) * self.tokens

    @property
    def flops(self) -> float:
        """FLOPs that one device computes in a step, recomputation and kernels included."""
        return self.costs.flops

    def bounds(self) -> dict[str, float]:
        """Seconds that a step takes at least, by what limits it."""
        chip = self.topology.chip
        parts = chip.devices  # that share the rates of a chip
        found = {
            "arithmetic": self.flops * parts / chip.flops,
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
        """Whether a group of GPUs along these axes has members in several nodes."""
        node = self.topology.devices // self.topology.domains
        inner, spans = 1, False
        for name in reversed(list(self.mesh)):
            reach = inner * self.mesh[name]
            spans |= name in axes and reach > node
            inner = reach
        return spans

    @property
    def seconds(self) -> float:
        """The roofline: the longest bound, everything else hidden behind it."""
        return max(self.bounds().values())

    @property
    def rank(self) -> tuple[float, float, float]:
        """Least is best: the roofline, of equal ones the sum of all bounds, then the memory."""
        return round(self.seconds, 3), round(sum(self.bounds().values()), 3), self.memory.total

    @property
    def micro_batch(self) -> tuple[float, float]:
        """Windows, and positions of each, that a device works on at a time."""
        rows = math.prod(self.mesh[axis] for axis in RULES["batch"])
        windows = self.batch / rows / self.settings["accumulate"]
        return windows, self.sequence / math.prod(self.mesh[axis] for axis in RULES["sequence"])

    @property
    def mfu_bound(self) -> float:
        """Model FLOP utilisation if a step took no longer than the roofline."""
        return self.model_flops / self.seconds / (self.topology.chip.flops * self.topology.chips)

    @property
    def fits(self) -> bool:
        """Whether the step needs no more memory than a program can use on a device."""
        return self.memory.total <= self.topology.memory

    def to_json(self) -> dict[str, Any]:
        """All figures; bytes, seconds, FLOPs."""
        tokens_per_second = self.tokens / self.seconds
        days = self.steps * self.seconds / 86_400
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
            "device_flops": self.flops,
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
            "tokens_per_second": tokens_per_second,
            "steps": self.steps,
            "tokens": self.steps * self.tokens,
            "days": days,
            "chip_hours": hours,
            "cost": None if self.price is None else hours * self.price,
        }

    def _collectives(self) -> list[dict[str, Any]]:
        grouped: dict[tuple[tuple[str, ...], str, int], list[float]] = {}
        for one in self.costs.collectives:
            row = grouped.setdefault((one.axes, one.kind, one.devices), [0, 0.0])
            row[0] += one.times
            row[1] += one.bytes * one.times
        return [
            {
                "axes": list(axes),
                "kind": kind,
                "devices": devices,
                "times": int(times),
                "bytes": sent,
            }
            for (axes, kind, devices), (times, sent) in sorted(
                grouped.items(), key=lambda item: -item[1][1]
            )
        ]
