"""The policy by which a test takes a simulated machine, made without the warning that it deserves."""

from __future__ import annotations

import warnings
from typing import Any

from blindbox_attestation import UnsafeSimulatedPolicy, UnsafeSimulationWarning


def unsafe(**changes: Any) -> UnsafeSimulatedPolicy:
    with warnings.catch_warnings(action="ignore", category=UnsafeSimulationWarning):
        return UnsafeSimulatedPolicy(**changes)
