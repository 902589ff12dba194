"""How much memory something takes."""

from __future__ import annotations

import gc
import threading

from enclave_app.figures import resident_bytes


class Peak:
    """The most memory this process had while the block ran, above what it had before: `growth`, in bytes."""

    growth = 0

    def __enter__(self) -> Peak:
        gc.collect()
        self.before = self.most = resident_bytes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.growth = self.most - self.before

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            self.most = max(self.most, resident_bytes())
