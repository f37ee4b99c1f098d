"""A real browser for pages: its network is off, and it keeps what a page says and asks for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, sync_playwright

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]
NO_BROWSER = "there is no chromium and no google-chrome on this machine"


def unavailable(what: str) -> NoReturn:
    """Skip, and say why; where everything has to run, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}, and CI needs it")
    pytest.skip(what)


def path() -> str | None:
    """Where the browser is."""
    return next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)


@contextmanager
def launched(executable: str) -> Iterator[Browser]:
    """The browser at a path."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page, and what it did."""

    page: Page
    said: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def open_page(
    browser: Browser,
    path: Path,
    *,
    scheme: Literal["light", "dark"] = "light",
    width: int = 1280,
    is_phone: bool = False,
) -> Opened:
    context = browser.new_context(
        offline=True,
        color_scheme=scheme,
        viewport={"width": width, "height": 900},
        is_mobile=is_phone,
        has_touch=is_phone,
        device_scale_factor=2 if is_phone else 1,
        reduced_motion="reduce",
    )
    opened = Opened(context.new_page())
    opened.page.on("console", lambda message: opened.said.append(f"{message.type}: {message.text}"))
    opened.page.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto(path.as_uri())
    return opened


def check_drawn(opened: Opened, path: Path, *, num_charts: int, fewest_marks: int) -> None:
    """Every chart is there, with its points; nothing was asked for, and nothing went wrong."""
    charts = opened.page.locator("svg.chart").all()
    assert len(charts) == opened.page.locator("figure").count() == num_charts
    for chart in charts:
        box = chart.bounding_box()
        assert box is not None and box["width"] > 300 and box["height"] > 60  # a single bar is no higher
        assert chart.locator(".mark").count() >= fewest_marks
        assert chart.locator("path[stroke]").count() >= 1
    assert opened.said == []
    assert opened.requests == [path.as_uri()]


def complaints(page: Page) -> list[str]:
    """What axe finds that is serious or critical."""
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html']}" for each in found if each["impact"] in ("serious", "critical")]
