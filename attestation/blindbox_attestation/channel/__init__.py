"""
The sealed channel of profile 1 (SPEC.md §5): how bytes are sealed for a proven key, and how they are opened.

`hpke` is the key schedule, `ohttp` the sealed message, `bhttp` the HTTP message inside it; `varint` is how
both count. Each holds both ends of its format. Nothing here knows whether a key deserves trust.
"""

from . import bhttp, hpke, ohttp, varint

__all__ = ["bhttp", "hpke", "ohttp", "varint"]
