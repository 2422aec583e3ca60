"""Counts the collective operations of a compiled program, from its HLO text."""

import math
import re

_KINDS = (
    "all-reduce|all-gather|reduce-scatter|ragged-all-to-all|all-to-all|collective-permute|collective-broadcast"
)
_OPERATION = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (.*?) ({_KINDS})(-start)?\(", re.MULTILINE)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")


def collectives(hlo: str) -> dict[str, dict]:
    """{kind: {"count", "bytes" of all results, "largest" result in bytes}}, per device and call of the program."""
    found: dict[str, dict] = {}
    for result, kind, start in _OPERATION.findall(hlo):
        sizes = [_bytes(dtype, shape) for dtype, shape in _ARRAY.findall(result)]
        if start and kind != "all-reduce":
            sizes = sizes[len(sizes) // 2 :]  # an asynchronous operation names operands, then results
        entry = found.setdefault(kind, {"count": 0, "bytes": 0, "largest": 0})
        entry["count"] += 1
        entry["bytes"] += sum(sizes)
        entry["largest"] = max(entry["largest"], *sizes)
    return found


def _bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
    return math.prod(int(n) for n in shape.split(",") if n) * bits // 8
