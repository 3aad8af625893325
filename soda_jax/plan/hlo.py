"""A compiled program as text, and what one run of it computes, reads and sends.

XLA's own cost analysis counts the body of a loop once and knows nothing of Pallas kernels. Here every
computation is counted as often as it runs: a loop as often as its condition says, a kernel with the cost
that its author states for it.

The figures follow the conventions of XLA's analysis: a product of matrices has 2 · m · n · k FLOPs, an
instruction reads its operands and writes its result, and what is inside a fusion moves no bytes.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

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
    """An array of the program.

    Attributes:
      type: "bf16", "f32", …
      shape: of one device's part.
      space: number of the memory in which it lies; 0 is the main one, others are faster, 5 is the host's.
    """

    type: str
    shape: tuple[int, ...]
    space: int

    @property
    def on_host(self) -> bool:
        """Whether it lies in the memory of the host (`kHostMemorySpace` of XLA's layouts)."""
        return self.space == 5

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size without padding."""
        return self.elements * _BYTES.get(self.type, 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, opcode: as in the text.
      arrays: of its result, several for a tuple.
      operands: names of its operands.
      text: everything behind the operands.
      arguments: what stands between the brackets, the number of a parameter or the value of a constant.
      root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str
    arguments: str
    root: bool

    def called(self, key: str) -> str | None:
        """The computation that an attribute (`calls`, `body`, …) names."""
        found = re.search(rf"\b{key}=%([\w.\-]+)", self.text)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Module:
    """The computations of a program by name, each a mapping of its instructions by name, in order."""

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str


def parse_module(text: str) -> Module:
    """Reads the text of a compiled program (`Compiled.as_text()`).

    Raises:
      ValueError: if it has no entry computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if head := _HEAD.match(line):
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
        elif line.rstrip() == "}":  # an attribute may go over several lines
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


def _closing(text: str, at: int) -> int:
    """One behind the bracket that closes the one at `at`."""
    depth = 0
    for place in range(at, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place + 1
    return len(text)


def _arrays(text: str) -> Iterator[Array]:
    for kind, shape, layout in _ARRAY.findall(text):
        if kind in _BYTES:
            space = re.search(r"S\((\d+)\)", layout)
            dims = tuple(int(n) for n in shape.split(",") if n)
            yield Array(kind, dims, int(space[1]) if space else 0)


def trip_count(module: Module, loop: Instruction) -> int | None:
    """How often the body of a `while` runs; None if the text does not tell.

    XLA for CPU and GPU writes it down; for TPU it is read from the condition, a counter from 0 that is
    compared with a constant.
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
    """FLOPs of a `dot` or `convolution`."""
    out = line.arrays[0]
    left, right = (lines[name].arrays[0] for name in line.operands[:2])
    if line.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", line.text)
        axes = [int(n) for n in contracted[1].split(",") if n] if contracted else []
        return 2 * out.elements * math.prod(left.shape[axis] for axis in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.text)
    if labels is None:
        return 0
    inputs, kernel, output = labels[1], labels[2], labels[3]
    pairs = 1
    for number, window in enumerate(_windows(line.text, sum(c.isdigit() for c in kernel))):
        at = str(number)
        pairs *= _window_pairs(
            left.shape[inputs.index(at)], out.shape[output.index(at)], *window
        )  # fmt: skip
    batch, features = out.shape[output.index("b")], out.shape[output.index("f")]
    return 2 * pairs * batch * features * right.shape[kernel.index("i")]


def _windows(text: str, count: int) -> list[tuple[int, int, int, int, int]]:
    """(size, stride, padding before, base dilation, window dilation) of each spatial dimension."""
    found = re.search(r"window=\{([^}]*)\}", text)
    fields = dict(part.split("=") for part in found[1].split()) if found else {}

    def numbers(key: str, default: str) -> list[str]:
        return fields[key].split("x") if key in fields else [default] * count

    columns = (
        numbers("size", "1"),
        numbers("stride", "1"),
        [pad.split("_")[0] for pad in numbers("pad", "0_0")],
        numbers("lhs_dilate", "1"),
        numbers("rhs_dilate", "1"),
    )
    return [tuple(int(n) for n in row) for row in zip(*columns, strict=True)]  # type: ignore[misc]


def _window_pairs(
    length: int, out: int, size: int, stride: int, before: int, base: int, dilation: int
) -> int:
    """Pairs of an output place and a place of the window under which there is an input, not padding."""
    if size == 1 and stride == 1 and before == 0 and base == 1:
        return min(out, length)
    pairs, last = 0, (length - 1) * base
    for place in range(out):
        for offset in range(size):
            at = place * stride + offset * dilation - before
            pairs += 0 <= at <= last and at % base == 0
    return pairs
