"""
A real Chromium, without a window, that writes down what it asks for and what it complains about.

    with chromium() as browser, opened(browser, url) as (page, seen):
        page.get_by_role("button", name="Send").click()
        assert seen.complaints == []

Where the program is missing it is installed if that was asked for (`CI=true` or `BLINDBOX_INSTALL=1`), and
otherwise the tests that need it are skipped and say why.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request, expect, sync_playwright

from tests.kit.debian import install_if_asked

PATIENCE_MS = 20_000  # of a machine that is busy with other tests


@cache
def need_chromium() -> str:
    """Its path; the test is skipped if there is none and it may not be installed."""
    if shutil.which("chromium") is None:
        install_if_asked(["chromium"], "chromium", "fonts-dejavu-core")
    return shutil.which("chromium") or "chromium"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that lives as long as the block."""
    path = need_chromium()
    with sync_playwright() as playwright:
        # Without its sandbox, which needs rights that a container does not have; it sees our own pages only.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Seen:
    """What a page asked for, and what the browser said about it."""

    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    @property
    def origins(self) -> set[str]:
        return {"{0.scheme}://{0.netloc}".format(urlsplit(each.url)) for each in self.requests}

    def console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def dialog(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()


@contextmanager
def opened(
    browser: Browser, url: str, *, width: int = 1100, height: int = 800, **options: Any
) -> Iterator[tuple[Page, Seen]]:
    """A page of its own profile, which is gone afterwards; `options` are those of `new_context`."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    page, seen = context.new_page(), Seen()
    page.on("request", lambda request: seen.requests.append(request))  # a built-in it cannot take
    page.on("console", seen.console)
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("dialog", seen.dialog)
    try:
        page.goto(url)
        yield page, seen
    finally:
        context.close()
