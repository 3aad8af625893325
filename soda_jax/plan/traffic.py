"""Counts the bytes that an instruction moves in main memory (HBM), and to or from the host."""

import re
from collections.abc import Mapping

from soda_jax.plan.hlo import HOST, Array, Instruction, Module

# Instructions that move no bytes. The …-done half of an asynchronous instruction moves none either.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
    "after-all", "partition-id", "replica-id", "iota", "opt-barrier", "add-dependency", "async-update",
}  # fmt: skip


def main_bytes(module: Module, line: Instruction, lines: Mapping[str, Instruction]) -> float:
    """Returns the bytes that an instruction reads from and writes to main memory.

    Args:
      module: the program.
      line: the instruction.
      lines: the computation that contains it.
    """
    opcode = line.opcode.removesuffix("-start")
    if opcode in _FREE or opcode.endswith("-done"):
        return 0.0
    if line.opcode == "copy-start":
        return float(sum(map(_main, line.arrays[:2])))
    if opcode in ("dynamic-slice", "dynamic-update-slice"):
        sliced = opcode == "dynamic-slice"
        size = _ends(line, lines)[1].bytes if sliced else lines[line.operands[1]].arrays[0].bytes
        return float(sum(size for end in _ends(line, lines) if end.space == 0))
    if line.opcode != "fusion":
        read = sum(_main(a) for name in line.operands for a in lines[name].arrays)
        return float(read + sum(map(_main, line.arrays)))
    # An output that is aliased to an operand moves no bytes, for example in fusions that continue
    # a collective.
    kept = _aliased(line)
    inner = module.fused(line)
    result = float(sum(size for n, size in enumerate(_written(line, inner)) if n not in kept))
    numbers = {int(p.arguments): p.name for p in inner.values() if p.opcode == "parameter"}
    for number, name in enumerate(line.operands):
        arrays = lines[name].arrays
        if number in kept.values() and len(line.arrays) > 1:
            continue
        if not arrays or _main(arrays[0]) == 0:
            continue
        users = [one for one in inner.values() if numbers.get(number) in one.operands]
        result += min(
            float(_main(arrays[0])), sum(_read(one, numbers.get(number)) for one in users)
        )
    return result


def _written(line: Instruction, inner: Mapping[str, Instruction]) -> list[int]:
    """Returns, for each output of a fusion, the bytes written to main memory.

    For the output of a dynamic-update-slice, only the update is counted.
    """
    root = next((one for one in inner.values() if one.root), None)
    names = root.operands if root is not None and root.opcode == "tuple" else ()
    made = [inner[name] for name in names] if len(names) == len(line.arrays) else [root]
    made += [None] * (len(line.arrays) - len(made))
    return [
        _main(array) if (new := _update(one, inner)) is None else new * (array.space == 0)
        for array, one in zip(line.arrays, made, strict=False)
    ]


def _update(one: Instruction | None, inner: Mapping[str, Instruction]) -> int | None:
    """Returns the bytes that a dynamic-update-slice writes; None for another instruction.

    Bitcasts of the result are skipped.
    """
    while one is not None and one.opcode == "bitcast":
        one = inner.get(one.operands[0])
    if one is None or one.opcode != "dynamic-update-slice":
        return None
    return inner[one.operands[1]].arrays[0].bytes


def host_bytes(line: Instruction, lines: Mapping[str, Instruction]) -> float:
    """Returns the bytes that an instruction other than a fusion moves between device and host."""
    opcode = line.opcode.removesuffix("-start")
    if opcode not in ("copy", "dynamic-slice", "dynamic-update-slice"):
        return 0.0
    source, target = _ends(line, lines)
    if (source.space == HOST) == (target.space == HOST):
        return 0.0
    return float(target.bytes if opcode == "dynamic-slice" else source.bytes)


def _ends(line: Instruction, lines: Mapping[str, Instruction]) -> tuple[Array, Array]:
    """Returns source and target of a copy, slice or update.

    The source of a slice and the target of an update have the shape of the whole array.
    """
    operands = [lines[name].arrays[0] for name in line.operands if lines[name].arrays]
    if line.opcode.startswith("dynamic-update-slice"):
        return operands[1], operands[0]
    if line.opcode == "dynamic-slice-start":  # ((operands …), target, context)
        return operands[0], line.arrays[len(operands)]
    return operands[0], line.arrays[0]  # the result of a copy-start is (target, source, context)


def _aliased(line: Instruction) -> dict[int, int]:
    """Returns the aliased outputs of a fusion, as index of the output → index of the operand."""
    found = re.search(r"output_to_operand_aliasing=\{(.*?)\}(?:, [a-z]|$)", line.text)
    pairs = re.findall(r"\{(\d+)\}: \((\d+), \{\}", found[1]) if found else []
    return {int(output): int(operand) for output, operand in pairs}


def _read(user: Instruction, parameter: str | None) -> float:
    """Returns how many bytes of a fusion's parameter `user` reads; infinity if it reads all."""
    if user.operands[0] == parameter:
        if user.opcode in ("dynamic-slice", "slice", "gather"):
            return float(user.arrays[0].bytes)
        if user.opcode == "dynamic-update-slice":
            return 0.0
    return float("inf")


def _main(array: Array) -> int:
    return array.bytes if array.space == 0 else 0
