"""Parses the text of a compiled program (HLO), and counts the FLOPs of its matrix products.

XLA's own cost analysis counts the body of a loop once, and a Pallas kernel only if the kernel has a
`cost_estimate`. Instead, `costs.py` walks the parsed program, multiplies the costs of a loop
body by the trip count, and uses the kernel FLOPs that the caller passes.

The conventions are otherwise those of XLA's analysis: a matrix product has 2 · m · n · k FLOPs, an
instruction reads its operands and writes its result, and the instructions inside a fusion move no
bytes.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

HOST = 5  # memory space of the host, XLA's `kHostMemorySpace`
_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4,
    "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16, "f8e4m3fn": 1, "f8e5m2": 1, "s4": 1, "u4": 1,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_LINE = re.compile(r"^\s*(ROOT )?%([\w.\-]+) = (.*)$")
_HEAD = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{\s*$")
_OPCODE = re.compile(r"\s*([a-z][a-z0-9\-]*)\(")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of the program, with the shape that it has on one device.

    Attributes:
      type: element type, such as "bf16".
      shape: size of each dimension.
      space: memory space; 0 is the main memory of the device (HBM), `HOST` the memory of the host;
        other spaces are on the chip (VMEM, …).
    """

    type: str
    shape: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> int:
        """Size without padding."""
        return math.prod(self.shape) * _BYTES[self.type]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, opcode: as in the text of the program.
      arrays: the array that it computes, or several for a tuple.
      operands: names of the operands.
      text: the attributes after the operands.
      arguments: text in the parentheses, such as operands or the value of a constant.
      root: whether its result is that of the computation.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str
    arguments: str
    root: bool

    def called(self, key: str) -> str | None:
        """Returns the name of the computation in an attribute such as `calls` or `body`."""
        found = re.search(rf"\b{key}=%([\w.\-]+)", self.text)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: its computations by name, each a mapping from names to instructions, in order."""

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str

    def fused(self, line: Instruction) -> Mapping[str, Instruction]:
        """Returns the instructions inside a fusion or an asynchronous call."""
        return self.computations.get(line.called("calls") or "", {})


def parse_module(text: str) -> Module:
    """Parses the text of a compiled program (`Compiled.as_text()`).

    Raises:
      ValueError: if the text has no entry computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if head := _HEAD.match(line):
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
        elif line.rstrip() == "}":  # an indented "}" ends an attribute of several lines
            current = None
        elif found := _LINE.match(line):
            instruction = _instruction(found[2], found[3], bool(found[1]))
            if instruction is not None:
                current[instruction.name] = instruction
    if not entry:
        raise ValueError("the text of the program has no ENTRY computation")
    return Module(computations, entry)


def _instruction(name: str, rest: str, root: bool) -> Instruction | None:
    shape_end = _closing(rest, 0) if rest.startswith("(") else rest.find(" ")
    opcode = _OPCODE.match(rest, shape_end)
    if opcode is None:
        return None
    close = _closing(rest, opcode.end() - 1)
    arguments = rest[opcode.end() : close - 1]
    operands = tuple(_NAME.findall(arguments))
    arrays = tuple(_arrays(rest[:shape_end]))
    return Instruction(name, opcode[1], arrays, operands, rest[close:], arguments, root)


def _closing(text: str, start: int) -> int:
    """Returns the index after the parenthesis that closes the parenthesis at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if not depth:
            return index + 1
    return len(text)


def _arrays(text: str) -> Iterator[Array]:
    for kind, shape, layout in _ARRAY.findall(text):
        if kind in _BYTES:
            space = re.search(r"S\((\d+)\)", layout)
            dims = tuple(int(n) for n in shape.split(",") if n)
            yield Array(kind, dims, int(space[1]) if space else 0)


def trip_count(module: Module, loop: Instruction) -> int | None:
    """Returns the trip count of a `while`; None if the text does not contain it.

    XLA for CPU and GPU writes the trip count into the text. For a TPU, the trip count is read from
    the condition, which must compare a counter with a constant; the counter is assumed to start at
    0 and to increase by 1.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text):
        return int(known[1])
    condition = module.computations.get(loop.called("condition") or "", {})
    constants = [
        int(line.arguments)
        for line in condition.values()
        if line.opcode == "constant" and re.fullmatch(r"\d+", line.arguments)
    ]
    compares = [line for line in condition.values() if "direction=LT" in line.text]
    return constants[0] if len(constants) == 1 and len(compares) == 1 else None


def product_flops(line: Instruction, lines: Mapping[str, Instruction]) -> int:
    """Returns the FLOPs of a `dot` or `convolution` in the computation `lines`."""
    out = line.arrays[0]
    left, right = (lines[name].arrays[0] for name in line.operands[:2])
    if line.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", line.text)
        axes = [int(n) for n in contracted[1].split(",") if n] if contracted else []
        return 2 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.text)
    if labels is None:
        return 0
    inputs, kernel, output = labels[1], labels[2], labels[3]
    pairs = 1
    for number, window in enumerate(_windows(line.text, sum(c.isdigit() for c in kernel))):
        axis = str(number)
        pairs *= _window_pairs(
            left.shape[inputs.index(axis)], out.shape[output.index(axis)], *window
        )
    batch, features = out.shape[output.index("b")], out.shape[output.index("f")]
    return 2 * pairs * batch * features * right.shape[kernel.index("i")]


def _windows(text: str, count: int) -> list[tuple[int, ...]]:
    """Returns (size, stride, low padding, base dilation, window dilation) per spatial dimension."""
    found = re.search(r"window=\{([^}]*)\}", text)
    fields = dict(part.split("=") for part in found[1].split()) if found else {}
    defaults = {"size": "1", "stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}
    columns = [
        fields[key].split("x") if key in fields else [default] * count
        for key, default in defaults.items()
    ]
    rows = zip(*columns, strict=True)
    return [tuple(int(value.split("_")[0]) for value in row) for row in rows]


def _window_pairs(
    length: int, out: int, size: int, stride: int, before: int, base: int, dilation: int
) -> int:
    """Returns the number of (output, window) positions that read an input element, not padding."""
    if size == 1 and stride == 1 and before == 0 and base == 1:
        return min(out, length)
    pairs, last = 0, (length - 1) * base
    for position in range(out):
        for offset in range(size):
            index = position * stride + offset * dilation - before
            pairs += 0 <= index <= last and index % base == 0
    return pairs
