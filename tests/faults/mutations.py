"""Changes files as disks, copies and hands do: flipped bits, lost, repeated and foreign bytes, nonsense in JSON."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

NONSENSE: list[Any] = [
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**400, -(10**18), 0.5, 1e308, -1e-320, float("nan"), float("inf"), "",
    "x", "x" * 3000, "\ud800", "\x00\n", "1", "true", "../../../etc/passwd", [], {}, [[]], [None], {"a": {}}, [1, "a"],
]  # fmt: skip


def mutate(path: Path, rng: random.Random) -> str:
    """Change a file in one way. Returns in words how."""
    content = path.read_bytes()
    name = rng.choice([*_BYTES, *(["json", "json", "json"] if path.suffix in (".json", ".jsonl") else [])])
    if name == "json":
        changed, what = _change_json(content, rng)
    else:
        changed, what = bytes(_BYTES[name](bytearray(content), rng)), name
    path.write_bytes(changed)
    return f"{path.name}: {what}"


def _flip(content: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 1, 2, 30))):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def _part(content: bytearray, rng: random.Random) -> tuple[int, int]:
    begin = rng.randrange(len(content) + 1)
    return begin, begin + rng.choice((1, 2, 8, 100, 5000))


def _lose(content: bytearray, rng: random.Random) -> bytearray:
    begin, end = _part(content, rng)
    return content[:begin] + content[end:]


def _repeat(content: bytearray, rng: random.Random) -> bytearray:
    begin, end = _part(content, rng)
    return content[:end] + content[begin:]


def _zero(content: bytearray, rng: random.Random) -> bytearray:
    begin, end = _part(content, rng)
    content[begin:end] = bytes(len(content[begin:end]))
    return content


def _noise(content: bytearray, rng: random.Random) -> bytearray:
    begin, end = _part(content, rng)
    content[begin:end] = rng.randbytes(len(content[begin:end]))
    return content


_BYTES = {
    "flipped": _flip,
    "lost": _lose,
    "repeated": _repeat,
    "zeroed": _zero,
    "noise": _noise,
    "cut": lambda content, rng: content[: rng.randrange(len(content) + 1)],
    "emptied": lambda content, rng: bytearray(),
    "longer": lambda content, rng: content + rng.choice((b"\n", b"}", b"\x00" * 100, bytes(content))),
    "nested": lambda content, rng: bytearray(b"[" * 100_000),
}


def _change_json(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Replace, remove or rename one value, anywhere in it; of a file of lines in one of them."""
    lines = content.split(b"\n")
    place = rng.randrange(len(lines))
    try:
        tree = json.loads(content)
        lines, place = [content], 0
    except ValueError:
        try:
            tree = json.loads(lines[place])
        except ValueError:
            return content + b"{", "longer"
    parents = list(_inner(tree))
    if not parents:
        return json.dumps(rng.choice(NONSENSE)).encode(), "replaced"
    parent, key = rng.choice(parents)
    how = rng.choice(("value", "value", "value", "removed", "renamed"))
    if how == "value":
        parent[key] = value = rng.choice(NONSENSE)
        how = f"{key} is {value!r:.40}"
    elif how == "renamed" and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
        how = f"{key} renamed"
    else:
        del parent[key]
        how = f"{key} removed"
    lines[place] = json.dumps(tree).encode()
    return b"\n".join(lines), how


def _inner(tree: Any) -> Any:
    """Every (container, key) in a tree of JSON."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _inner(tree[key])
