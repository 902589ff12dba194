"""
The app inside the seal with a stop watch: each request is counted by its route, as the code writes that, and
by the class of its status. What is asked and by whom is not looked at.
"""

from __future__ import annotations

import time
from typing import Any

from .figures import Figures

REFUSAL = "blindbox.refusal"
"""Where in a request's scope the code of its refusal stands, if it was refused."""


class Measured:
    """An ASGI application that tells `figures` what `app` answers."""

    def __init__(self, app: Any, figures: Figures) -> None:
        self._app = app
        self._figures = figures

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # the caller hung up, if nobody says otherwise

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            status = 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._figures.served(route, status, time.monotonic() - began, scope.get(REFUSAL))
