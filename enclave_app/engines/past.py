"""
Keys and values of sequences that are continued together, as transformers' models ask for them.

A `Past` holds that of a few sequences of different lengths, aligned at their ends: all grow by a column at a
time, and what stands before a shorter one is nothing (the mask says so). transformers' own `DynamicCache`
copies everything at each token, and cannot take a sequence in or let one go.

Windows of attention (Gemma, Mistral) are left to the mask: all tokens are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

SPARE: Final = 64  # columns that are made beyond those in use, so that growing is rare


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values: `[sequences, heads, columns, size]`; `length` columns are used."""

    is_sliding = False

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to prepare: see `update`."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new columns; return all."""
        begin, end = self.length, self.length + key_states.shape[-2]
        self.keys = _with_room(self.keys, key_states, begin, end)
        self.values = _with_room(self.values, value_states, begin, end)
        self.keys[:, :, begin:end] = key_states
        self.values[:, :, begin:end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_cache_shape(self) -> int:
        return -1

    def put(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        """Have these from now on."""
        self.keys, self.values, self.length = keys, values, length


class Past(Cache):  # type: ignore[misc]
    """The sequences of one batch, by their place in it."""

    layers: Any  # a list of `_Layer`s

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_Layer)

    @property
    def length(self) -> int:
        """Columns in use: the length of the longest."""
        return self.layers[0].length if self.layers else 0

    @length.setter
    def length(self, length: int) -> None:
        """Forget the columns after these: what a step that failed has written."""
        for layer in self.layers:
            layer.length = min(layer.length, length)

    def order(self, places: Sequence[int]) -> None:
        """Have at each place what stood at the place that is named for it."""
        if list(places) == list(range(len(places))):
            return
        for layer in self.layers:
            where = torch.tensor(places, device=layer.keys.device)
            layer.put(layer.keys[where], layer.values[where], layer.length)

    def copy(self, place: int, length: int) -> Past:
        """The last `length` columns of one sequence, as a past of its own."""
        return together([(self, place, length)], spare=0)

    def beginning(self, length: int) -> Past:
        """The first columns of all, without copying them; this one is not to be written to any more."""
        made = Past()
        for layer in self.layers:
            alike = _Layer()
            alike.put(layer.keys[:, :, :length], layer.values[:, :, :length], length)
            made.layers.append(alike)
        return made

    def bytes_of_a_token(self) -> int:
        """What a column of one sequence takes."""
        return sum(
            part.shape[1] * part.shape[3] * part.element_size()
            for layer in self.layers
            for part in (layer.keys, layer.values)
        )


def together(rows: Sequence[tuple[Past, int, int]], *, spare: int = SPARE) -> Past:
    """One of sequences from others, each told as (past, place, length)."""
    longest = max(length for _, _, length in rows)
    made = Past()
    for number in range(len(rows[0][0].layers)):
        layer = _Layer()
        layer.put(
            _aligned(
                [(each.layers[number].keys, each.length, at, own) for each, at, own in rows], longest, spare
            ),
            _aligned(
                [(each.layers[number].values, each.length, at, own) for each, at, own in rows], longest, spare
            ),
            longest,
        )
        made.layers.append(layer)
    return made


def _aligned(parts: list[tuple[torch.Tensor, int, int, int]], longest: int, spare: int) -> torch.Tensor:
    heads, size = parts[0][0].shape[1], parts[0][0].shape[3]
    # Zeros, for what is masked is multiplied by nothing, and nothing times "not a number" is not nothing.
    made = parts[0][0].new_zeros(len(parts), heads, longest + spare, size)
    for row, (part, used, place, length) in enumerate(parts):
        made[row, :, longest - length : longest] = part[place, :, used - length : used]
    return made


def _with_room(part: Any, new: torch.Tensor, used: int, wanted: int) -> Any:
    if part is not None and wanted <= part.shape[2]:
        return part
    made: Any = new.new_zeros(new.shape[0], new.shape[1], wanted + SPARE, new.shape[3])
    if part is not None:
        made[:, :, :used] = part[:, :, :used]
    return made
