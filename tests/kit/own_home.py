"""A user of a test's own: nothing is read from or written to the settings of whoever runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

_THEIRS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "NETRC")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def moved_to(home: Path, patch: pytest.MonkeyPatch) -> Path:
    """From now on the client's settings lie in `home`, and no proxy or key of the environment is used."""
    patch.setenv("BLINDBOX_HOME", str(home))
    for name in (*_THEIRS, *_PROXIES, *map(str.lower, _PROXIES)):
        patch.delenv(name, raising=False)
    return home
