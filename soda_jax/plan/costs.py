"""Counts FLOPs, bytes and collectives of a compiled program, multiplied by the loop trip counts."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from soda_jax.plan.hlo import Instruction, Module, product_flops, trip_count
from soda_jax.plan.traffic import host_bytes, main_bytes

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation.

    Attributes:
      kind: "all-gather", "all-reduce", …
      axes: mesh axes along which devices communicate.
      devices: number of devices in a replica group.
      bytes: bytes that one device sends per execution, if it uses a ring algorithm.
      times: number of executions per run of the program.
    """

    kind: str
    axes: tuple[str, ...]
    devices: int
    bytes: float
    times: int


@dataclasses.dataclass
class Costs:
    """Costs of one run of a program on one device.

    Attributes:
      flops: FLOPs of matrix products and kernels.
      flops_once: FLOPs of matrix products with every loop body counted once, as XLA's analysis does.
      kernel_flops: the FLOPs of custom kernels, which `flops` includes.
      bytes: bytes read from and written to the main memory of the device (HBM).
      host_bytes: bytes moved to and from host memory.
      collectives: the collective operations.
      open_loops: number of loops whose trip count is unknown; they are counted once.
    """

    flops: float = 0.0
    flops_once: float = 0.0
    kernel_flops: float = 0.0
    bytes: float = 0.0
    host_bytes: float = 0.0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    open_loops: int = 0

    def sent(self) -> dict[tuple[str, ...], float]:
        """Returns the bytes that one device sends per run of the program, by mesh axes."""
        total: dict[tuple[str, ...], float] = {}
        for one in self.collectives:
            total[one.axes] = total.get(one.axes, 0.0) + one.bytes * one.times
        return total


def count_costs(
    module: Module, mesh: Mapping[str, int], kernels: Mapping[str, float], open_trips: int = 0
) -> Costs:
    """Returns the costs of a program.

    Args:
      module: the parsed program.
      mesh: sizes of the mesh axes in order; device n of the program is device n of the mesh.
      kernels: FLOPs per call of each custom kernel, by a substring of the instruction's name.
      open_trips: trip count of loops whose trip count depends on the data; with 0 they are counted once.
    """
    costs = Costs()
    _walk(module, module.entry, 1, costs, mesh, kernels, set(), open_trips)
    return costs


def _walk(module, name, times, costs, mesh, kernels, seen, open_trips):
    lines = module.computations[name]
    for line in lines.values():
        if line.opcode == "while":
            runs = trip_count(module, line)
            costs.open_loops += runs is None and not open_trips
            runs = runs or open_trips or 1
            _walk(module, line.called("body"), times * runs, costs, mesh, kernels, seen, open_trips)
        elif line.opcode == "conditional":
            branches = []
            for branch in _branches(line):
                branches.append(Costs())
                # A collective that started before the conditional may end in a branch, so each
                # branch gets a copy of the channel ids seen so far. New ids are not shared.
                _walk(module, branch, times, branches[-1], mesh, kernels, set(seen), open_trips)
            _add_largest(costs, branches)
        elif line.opcode == "call":
            _walk(module, line.called("to_apply"), times, costs, mesh, kernels, seen, open_trips)
        else:
            if line.opcode == "custom-call":
                kernel = next((flops for part, flops in kernels.items() if part in line.name), 0.0)
                costs.kernel_flops += kernel * times
                costs.flops += kernel * times
            for one, its_lines in _inside(module, line, lines):
                if one.opcode in ("dot", "convolution"):
                    once = product_flops(one, its_lines)
                    costs.flops += once * times
                    costs.flops_once += once
                costs.host_bytes += host_bytes(one, its_lines) * times
            costs.bytes += main_bytes(module, line, lines) * times
            for channel, found in _collectives(module, line, lines, mesh):
                # A collective that overlaps with other work is split over several fusions with the
                # same channel id, and is counted once.
                if channel is None or channel not in seen:
                    costs.collectives.append(dataclasses.replace(found, times=times))
                    seen.add(channel)


def _branches(line: Instruction) -> list[str]:
    """Returns the names of the branch computations of a conditional.

    The HLO text contains either a list of branches or one attribute each for true and false.
    """
    if listed := re.search(r"branch_computations=\{([^}]*)\}", line.text):
        return re.findall(r"%([\w.\-]+)", listed[1])
    return re.findall(r"\b(?:true|false)_computation=%([\w.\-]+)", line.text)


def _add_largest(costs: Costs, branches: list[Costs]) -> None:
    """Adds, for each kind of cost, that of the most expensive branch, as XLA's analysis does."""
    if not branches:
        return
    most = max(branches, key=lambda one: one.flops)
    costs.flops += most.flops
    costs.kernel_flops += most.kernel_flops
    costs.flops_once += most.flops_once
    costs.bytes += max(one.bytes for one in branches)
    costs.host_bytes += max(one.host_bytes for one in branches)
    costs.collectives += max(branches, key=lambda one: sum(one.sent().values())).collectives
    costs.open_loops += max(one.open_loops for one in branches)


def _inside(
    module: Module, line: Instruction, lines: Mapping[str, Instruction]
) -> Iterator[tuple[Instruction, Mapping[str, Instruction]]]:
    """Yields (instruction, computation) for `line`, or for those inside a fusion or async call."""
    if line.opcode.removesuffix("-start") not in ("fusion", "async"):
        yield line, lines
        return
    inner = module.fused(line)
    for one in inner.values():
        yield from _inside(module, one, inner)


def _collectives(
    module: Module,
    line: Instruction,
    lines: Mapping[str, Instruction],
    mesh: Mapping[str, int],
) -> Iterator[tuple[str | None, Collective]]:
    """Yields (channel id, collective) of an instruction; a fusion may contain several."""
    opcode = line.opcode.removesuffix("-start")
    if opcode == "fusion" or opcode == "async":
        inner = module.fused(line)
        # A fused all-reduce and slice is a reduce-scatter: each device keeps its part of the sum.
        scatters = "all-reduce-scatter" in (line.called("calls") or "") and any(
            other.opcode == "dynamic-slice" for other in inner.values()
        )
        for one in inner.values():
            for channel, found in _collectives(module, one, inner, mesh):
                if found.kind == "all-reduce" and scatters:
                    found = dataclasses.replace(found, kind="reduce-scatter", bytes=found.bytes / 2)
                yield channel, found
    elif opcode == "send" and (sent := re.search(r'megascale_transfer_type="(\w+)"', line.text)):
        # TPU slices communicate through their hosts, to which the devices send the data.
        kind = sent[1].lower().replace("_", "-")
        yield None, _between_slices(kind, lines[line.operands[0]].arrays[0].bytes, mesh["dcn"])
    elif opcode in _COLLECTIVES and (exchange := _collective(opcode, line, lines, mesh)):
        numbered = re.search(r"channel_id=(\d+)", line.text)
        yield numbered[1] if numbered else None, exchange


def _between_slices(kind: str, size: int, slices: int) -> Collective:
    share = (slices - 1) / slices
    sent = {"all-reduce": 2 * share, "all-gather": slices - 1, "reduce-scatter": share}
    return Collective(kind, ("dcn",), slices, sent.get(kind, 1.0) * size, 1)


def _collective(
    opcode: str, line: Instruction, lines: Mapping[str, Instruction], mesh: Mapping[str, int]
) -> Collective | None:
    axes, devices = _partners(line, mesh)
    if devices == 1:
        return None
    size = sum(array.bytes for array in line.arrays)
    read = sum(array.bytes for name in line.operands for array in lines[name].arrays)
    share = (devices - 1) / devices
    sent = {
        "all-gather": share * (size - read if line.opcode.endswith("-start") else size),
        "reduce-scatter": share * read,
        "all-reduce": 2 * share * read,
        "all-to-all": share * read,
        "collective-permute": float(read),
    }[opcode]
    return Collective(opcode, axes, devices, sent, 1)


def _partners(line: Instruction, mesh: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """Returns the mesh axes along which devices of a replica group differ, and the group size."""
    group = _first_group(line.text)
    if group is None and "replica_groups={}" not in line.text and "replica_groups=" in line.text:
        raise ValueError(f"replica groups in an unknown notation: {line.text[:200]}")
    if group is None:  # all devices
        group = np.arange(int(np.prod(list(mesh.values()))))
    indices = np.array(np.unravel_index(group, tuple(mesh.values())))
    differ = (indices != indices[:, :1]).any(axis=1)
    return tuple(name for name, other in zip(mesh, differ, strict=True) if other), len(group)


def _first_group(text: str) -> Any:
    """Returns the devices of the first replica group; None if the text does not list the groups."""
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text):
        return np.array([int(pairs[1]), int(pairs[2])])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return np.array([int(n) for n in listed[1].split(",")])
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        order = np.arange(int(iota[1]) * int(iota[2])).reshape(_numbers(iota[3]))
        order = order.transpose(_numbers(iota[4])) if iota[4] else order
        return order.reshape(int(iota[1]), int(iota[2]))[0]
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}", text
    )  # fmt: skip
    if named:
        sizes = {n: int(s) for n, s in re.findall(r"'([^']+)'=(\d+)", named[1])}
        wanted = re.findall(r"'([^']+)'", named[4])
        order = np.arange(int(np.prod(list(sizes.values()))))
        if named[2]:
            order = order.reshape(_numbers(named[2]))
            order = order.transpose(_numbers(named[3])) if named[3] else order
        index = tuple(slice(None) if name in wanted else 0 for name in sizes)
        return order.reshape(tuple(sizes.values()))[index].reshape(-1)
    return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))
