"""A real browser for tests of pages: headless Chromium, where the machine has one."""

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

__all__ = ["Visit", "chromium", "visit"]


@dataclass
class Visit:
    """One open page, and what the browser complained about or asked the network for."""

    page: object
    complaints: list = field(default_factory=list)
    requests: list = field(default_factory=list)


@contextmanager
def chromium():
    """Start Chromium; skip the test that asks where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
        )
        yield browser
        browser.close()


@contextmanager
def visit(browser, path, *, width=1280, height=900, scheme="light"):
    """Open a file of this machine and record errors and requests from the first byte on."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    seen = Visit(page)
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on(
        "console",
        lambda message: (
            seen.complaints.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(path.resolve().as_uri())
    yield seen
    context.close()
