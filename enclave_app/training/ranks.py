"""
Several processes that train one model together, each on its share of every batch.

They know their places by the variables that torchrun sets (RANK, WORLD_SIZE, …). Gradients are added up in
one buffer with a fixed layout, so the same rows give the same bits again. The first one speaks for all;
whoever starts them (`sft.py`) ends all when one dies.

They meet through a file in a folder of their own and talk over the loopback interface alone: torchrun's
rendezvous by port would listen on every interface of the machine. What they say are gradients.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
_PATIENCE: Final = timedelta(hours=2)
"""One may have to wait while another gets memory; the dead are seen at once."""


def environment(rank: int, size: int) -> dict[str, str]:
    """What tells a process its place."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
    }


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among those that train together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, folder: Path, environ: MutableMapping[str, str] = os.environ) -> Ranks:
        """
        Take the place that the environment names, and wait for the others.

        The variables are taken out: the libraries above this shall not wrap the model in ways of their own.
        """
        found = cls(int(environ.get("RANK", "0")), int(environ.get("WORLD_SIZE", "1")))
        for name in environment(0, 1).keys() - {"GLOO_SOCKET_IFNAME"}:
            environ.pop(name, None)
        if found.size > 1:
            from torch import distributed
            from torch.distributed import FileStore  # type: ignore[attr-defined]

            distributed.init_process_group(
                "gloo",
                store=FileStore(str(folder / "meeting"), found.size),
                rank=found.rank,
                world_size=found.size,
                timeout=_PATIENCE,
            )
        return found

    def share(self, batch: Sequence[_T]) -> list[_T]:
        """What of a batch is this process's; it may be nothing."""
        return list(batch[self.rank :: self.size])

    def add(self, tensors: Sequence[Any]) -> None:
        """Replace each tensor by the sum over all processes."""
        if self.size == 1 or not tensors:
            return
        import torch
        from torch import distributed

        flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
        distributed.all_reduce(flat)
        at = 0
        for tensor in tensors:
            tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
            at += tensor.numel()

    def heard(self, said: bool) -> bool:
        """What the first process says, the same in all of them."""
        if self.size == 1:
            return said
        import torch
        from torch import distributed

        word = torch.tensor([said], dtype=torch.int32)
        distributed.broadcast(word, 0)
        return bool(word.item())
