"""DER as a tree that can be changed anywhere: what a vendor would never write, in otherwise honest bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

CONSTRUCTED = (0x30, 0x31, 0xA0, 0xA3)


@dataclass
class Node:
    """One element: what it holds, or the elements in it."""

    tag: int
    content: bytes = b""
    inside: list[Node] = field(default_factory=list)

    def encode(self) -> bytes:
        content = b"".join(one.encode() for one in self.inside) or self.content
        size = len(content)
        if size < 0x80:
            return bytes((self.tag, size)) + content
        length = size.to_bytes((size.bit_length() + 7) // 8)
        return bytes((self.tag, 0x80 | len(length))) + length + content

    def __getitem__(self, at: int) -> Node:
        return self.inside[at]


def tree(der: bytes) -> Node:
    """The one element that these bytes are."""
    (node,) = _nodes(der)
    return node


def _nodes(der: bytes) -> list[Node]:
    found: list[Node] = []
    while der:
        tag, size, begins = der[0], der[1], 2
        if size & 0x80:
            begins += size & 0x7F
            size = int.from_bytes(der[2:begins])
        content = der[begins : begins + size]
        found.append(
            Node(tag, inside=_nodes(content)) if tag in CONSTRUCTED and content else Node(tag, content)
        )
        der = der[begins + size :]
    return found
