"""Bytes that an instruction of a compiled program moves: through the main memory, and over the link to the host."""

import re
from collections.abc import Mapping

from soda_jax.plan.hlo import Array, Instruction, Module

# Instructions that move nothing by themselves; nor does the end of an asynchronous one (…-done).
_FREE = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "conditional",
        "call",
        "after-all",
        "partition-id",
        "replica-id",
        "iota",
        "opt-barrier",
        "add-dependency",
        "async-update",
    ]
)


def main_bytes(module: Module, line: Instruction, lines: Mapping[str, Instruction]) -> float:
    """Bytes between the main memory and the rest of the device.

    Args:
      module: the program.
      line: an instruction of it.
      lines: the computation in which it stands.
    """
    opcode = line.opcode.removesuffix("-start")
    if opcode in _FREE or opcode.endswith("-done"):
        return 0.0
    if line.opcode == "copy-start":
        return float(sum(_main(array) for array in line.arrays[:2]))
    if opcode == "dynamic-slice":
        size = _sliced(line, lines)
        return float(sum(size for end in _ends(line, lines) if end.space == 0))
    if opcode == "dynamic-update-slice":
        size = lines[line.operands[1]].arrays[0].bytes
        return float(sum(size for end in _ends(line, lines) if end.space == 0))
    if line.opcode != "fusion":
        read = sum(_main(a) for name in line.operands for a in lines[name].arrays)
        return float(read + sum(_main(array) for array in line.arrays))
    # What is handed on as it lies moves nothing, as in the fusions that carry on with an exchange.
    kept = _aliased(line)
    inner = module.computations.get(line.called("calls") or "", {})
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
            float(_main(arrays[0])), sum(_read(one, numbers.get(number), inner) for one in users)
        )
    return result


def _written(line: Instruction, inner: Mapping[str, Instruction]) -> list[int]:
    """Bytes that each output of a fusion writes to the main memory: of a stack, the part that is new."""
    root = next((one for one in inner.values() if one.root), None)
    names = root.operands if root is not None and root.opcode == "tuple" else ()
    made = [inner[name] for name in names] if len(names) == len(line.arrays) else [root]
    made += [None] * (len(line.arrays) - len(made))
    return [
        _main(array) if (new := _update(one, inner)) is None else new * (array.space == 0)
        for array, one in zip(line.arrays, made, strict=False)
    ]


def _update(one: Instruction | None, inner: Mapping[str, Instruction]) -> int | None:
    """Bytes that a dynamic-update-slice writes, also as seen through bitcasts; None for all else."""
    while one is not None and one.opcode == "bitcast":
        one = inner.get(one.operands[0])
    if one is None or one.opcode != "dynamic-update-slice":
        return None
    return inner[one.operands[1]].arrays[0].bytes


def host_bytes(module: Module, line: Instruction, lines: Mapping[str, Instruction]) -> float:
    """Bytes between the device and the memory of its host, in either direction.

    Args: see `main_bytes`.
    """
    opcode = line.opcode.removesuffix("-start")
    if opcode in ("fusion", "async"):
        inner = module.computations.get(line.called("calls") or "", {})
        return sum(host_bytes(module, one, inner) for one in inner.values())
    if opcode not in ("copy", "dynamic-slice", "dynamic-update-slice"):
        return 0.0
    source, target = _ends(line, lines)
    if source.on_host == target.on_host:
        return 0.0
    return float(_sliced(line, lines) if opcode == "dynamic-slice" else source.bytes)


def _ends(line: Instruction, lines: Mapping[str, Instruction]) -> tuple[Array, Array]:
    """From where and to where a copy, a slice or an update moves; their shapes may be of the whole."""
    operands = [lines[name].arrays[0] for name in line.operands if lines[name].arrays]
    if line.opcode.startswith("dynamic-update-slice"):
        return operands[1], operands[0]
    if line.opcode == "copy-start":  # (target, source, context)
        return operands[0], line.arrays[0]
    if line.opcode == "dynamic-slice-start":  # ((operands …), target, context)
        return operands[0], line.arrays[len(operands)]
    return operands[0], line.arrays[0]


def _sliced(line: Instruction, lines: Mapping[str, Instruction]) -> int:
    """Bytes that a dynamic-slice takes."""
    return _ends(line, lines)[1].bytes


def _aliased(line: Instruction) -> dict[int, int]:
    """Outputs of a fusion that are operands in place, by number: output to operand."""
    found = re.search(r"output_to_operand_aliasing=\{(.*?)\}(?:, [a-z]|$)", line.text)
    pairs = re.findall(r"\{(\d+)\}: \((\d+), \{\}", found[1]) if found else []
    return {int(output): int(operand) for output, operand in pairs}


def _read(user: Instruction, parameter: str | None, inner: Mapping[str, Instruction]) -> float:
    """Bytes of a fusion's parameter that one of its users reads."""
    if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == parameter:
        return float(user.arrays[0].bytes)
    if user.opcode == "dynamic-update-slice" and user.operands[0] == parameter:
        return 0.0
    return float("inf")


def _main(array: Array) -> int:
    return array.bytes if array.space == 0 else 0
