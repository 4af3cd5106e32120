"""Text as it looks once its encodings are undone: percent-encoding, escapes of JSON and Python, HTML references. Pure.

Each layer keeps where its characters came from, so that what is found in it can be masked in the original.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

LAYERS_MAX: Final = 3  # encodings within encodings: a URL in a JSON string in a log line
_NAMED: Final = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "b": "\b", "/": "/", "0": "\0", '"': '"', "\\": "\\"}

_code = re.compile(
    r"((?:%[0-9A-Fa-f]{2})+)|\\u([0-9A-Fa-f]{4})|\\x([0-9A-Fa-f]{2})|\\([nrtfbv/0\"\\])"
    r"|&#([0-9]{1,7});|&#[xX]([0-9A-Fa-f]{1,6});|&(nbsp);"
)

_LATIN_SPACES: Final = b"\xa0\xad"
_KIND_OF_GROUP: Final = ("", "percent", "escape", "escape", "escape", "html", "html", "html")


class Layer(NamedTuple):
    """A decoded text; character i stands for the original from `starts[i]` to before `ends[i]`."""

    text: str
    starts: list[int]
    ends: list[int]


def decoded(text: str) -> Iterator[Layer]:
    """Yield the text decoded once, twice, ... as long as there is something to decode, at most LAYERS_MAX times.

    Where codes of several kinds stand, each kind is also decoded alone: whoever reads the text may know only that one.
    """
    layer = Layer(text, list(range(len(text))), list(range(1, len(text) + 1))) if _code.search(text) else None
    for _ in range(LAYERS_MAX):
        if layer is None:
            return
        kinds = {_KIND_OF_GROUP[found.lastindex or 0] for found in _code.finditer(layer.text)}
        if not kinds:
            return
        for kind in sorted(kinds) if len(kinds) > 1 else ():
            yield _decode(layer, frozenset({kind}))
        layer = _decode(layer, frozenset(kinds))
        yield layer


def _decode(layer: Layer, kinds: frozenset[str]) -> Layer:
    text, at = layer.text, 0
    chars: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for found in _code.finditer(text):
        if _KIND_OF_GROUP[found.lastindex or 0] not in kinds:
            continue
        chars.append(text[at : found.start()])
        starts += layer.starts[at : found.start()]
        ends += layer.ends[at : found.start()]
        for char, start, end in _characters(found):
            chars.append(char)
            starts.append(layer.starts[start])
            ends.append(layer.ends[end - 1])
        at = found.end()
    chars.append(text[at:])
    return Layer("".join(chars), starts + layer.starts[at:], ends + layer.ends[at:])


def _characters(found: re.Match[str]) -> Iterator[tuple[str, int, int]]:
    """Yield the characters that a code stands for, each with its place in the encoded text."""
    percents, u_escape, x_escape, named, decimal, hexadecimal, _ = found.groups()
    start, end = found.span()
    if percents is not None:
        yield from _utf8(bytes.fromhex(percents.replace("%", "")), start)
        return
    if named is not None:
        yield _NAMED[named], start, end
        return
    number = int(decimal) if decimal else int(u_escape or x_escape or hexadecimal or "a0", 16)
    yield chr(number) if number <= 0x10FFFF else "\ufffd", start, end


def _utf8(data: bytes, start: int) -> Iterator[tuple[str, int, int]]:
    """Yield the characters of percent-encoded UTF-8; a byte that is none as U+FFFD, unless it is a space of Latin-1."""
    at = 0
    while at < len(data):
        lead = data[at]
        size = 1 + (lead >= 0xC0) + (lead >= 0xE0) + (lead >= 0xF0)
        try:
            char = data[at : at + size].decode()
        except UnicodeDecodeError:
            char, size = (chr(lead) if lead in _LATIN_SPACES else "\ufffd"), 1
        yield char, start + at * 3, start + (at + size) * 3
        at += size
