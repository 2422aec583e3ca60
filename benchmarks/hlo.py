"""Counts in a compiled program's HLO text: collective operations, and the kernels that a GPU would be given."""

import dataclasses
import math
import re
from collections.abc import Iterator

_COLLECTIVES = (
    "all-reduce|all-gather|reduce-scatter|ragged-all-to-all|all-to-all|collective-permute|collective-broadcast"
)
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (.*?) ({_COLLECTIVES})(-start)?\(", re.MULTILINE)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*?)\)(, .*)?$")
_COMMENT = re.compile(r"/\*.*?\*/")
_NO_KERNEL = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")


def collectives(hlo: str) -> dict[str, dict]:
    """{kind: {"count", "bytes" of all results, "largest" result in bytes}}, per device and call of the program."""
    found: dict[str, dict] = {}
    for result, kind, start in _COLLECTIVE.findall(hlo):
        sizes = _sizes(result)
        if start and kind != "all-reduce":
            sizes = sizes[len(sizes) // 2 :]  # an asynchronous operation names operands, then results
        entry = found.setdefault(kind, {"count": 0, "bytes": 0, "largest": 0})
        entry["count"] += 1
        entry["bytes"] += sum(sizes)
        entry["largest"] = max(entry["largest"], *sizes)
    return found


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What a GPU is given to do at once: an instruction of the main computation.

    Attributes:
      kind: "convolution", "matrix product", "transposition", "reduction", "copy" or "element-wise and other".
      dtype: of its first operand: "bf16", "f32", …
      operations: additions and multiplications of convolutions and matrix products; 0 of the others.
      bytes: of its operands and results, each whole and once.
    """

    kind: str
    dtype: str
    operations: int
    bytes: int


def gpu_kernels(hlo: str) -> Iterator[Kernel]:
    """The kernels of a program compiled for an NVIDIA GPU, in order.

    Raises:
      ValueError: a loop or branch, whose kernels are not in the main computation.
    """
    results: dict[str, str] = {}
    for line in hlo[hlo.index("\nENTRY ") :].splitlines():
        found = _INSTRUCTION.match(_COMMENT.sub("", line))
        if not found:
            continue
        name, result, opcode, operands, details = found.groups(default="")
        results[name] = result
        if opcode in ("while", "conditional", "call"):
            raise ValueError(f"{opcode} {name}: expected a program without loops and branches")
        if opcode in _NO_KERNEL or re.match(_COLLECTIVES, opcode):
            continue
        names = re.findall(r"%([^\s,]+)", operands)
        inputs = [results[operand] for operand in names]
        target = re.search(r'custom_call_target="([^"]*)"', details)
        kind = _kind(name, opcode, target[1] if target else "")
        if target:
            result = _ARRAY.search(result)[0]  # behind it stands what the library may use as scratch memory
        operations = 0
        if kind == "convolution":
            operations = _convolution_operations(target[1], inputs, result, details)
        elif kind == "matrix product":
            contracted = re.search(r'"lhs_contracting_dimensions":\[(.*?)\]', details)[1]
            shared = math.prod(_shape(inputs[0])[int(axis)] for axis in re.findall(r"\d+", contracted))
            operations = 2 * math.prod(_shape(result)) * shared
        moved = sum(sum(_sizes(results[operand])) for operand in set(names)) + sum(_sizes(result))
        yield Kernel(kind, _ARRAY.search(inputs[0] if inputs else result)[1], operations, moved)


def _kind(name: str, opcode: str, target: str) -> str:
    if "$conv" in target:
        return "convolution"
    if "matmul" in target or "gemm" in target:
        return "matrix product"
    # XLA names a fusion after what is costly in it.
    for kind, words in {"transposition": "transpose", "reduction": "reduce", "copy": "copy"}.items():
        if words in name or opcode == words:
            return kind
    return "element-wise and other"


def _convolution_operations(target: str, inputs: list[str], result: str, details: str) -> int:
    """Twice the multiplications of cuDNN's convolution, or of one of its two gradients.

    The labels are those of the convolution itself in all three: input, kernel → output. Every entry of the output
    meets every entry of the kernel that has its channel.
    """
    kernel_labels = re.search(r"dim_labels=\w+_(\w+)->", details)[1]
    if "BackwardFilter" in target:
        kernel, output = result, inputs[1]
    elif "BackwardInput" in target:
        kernel, output = inputs[1], inputs[0]
    else:
        kernel, output = inputs[1], result
    return 2 * math.prod(_shape(output)) * math.prod(_shape(kernel)) // _shape(kernel)[kernel_labels.index("o")]


def _shape(text: str) -> list[int]:
    """Of the first array in an HLO type."""
    return [int(size) for size in _ARRAY.search(text)[2].split(",") if size]


def _sizes(text: str) -> list[int]:
    """Bytes of every array in an HLO type."""
    return [
        (8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0]))
        * math.prod(int(n) for n in shape.split(",") if n)
        // 8
        for dtype, shape in _ARRAY.findall(text)
    ]
