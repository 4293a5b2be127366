"""The page in a real browser: Chromium, without a display, led by Playwright.

``CHROMIUM`` names the program where it is not on the PATH; ``SCREENSHOTS`` a folder to leave
pictures in.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from alembic_partitions.contrib.page import CSP, render
from alembic_partitions.maintenance import View
from tests.contrib.operators_view import HOSTILE, a_bad_day, seen, view
from tests.unit.test_screens import table

PHONE, DESK = 375, 1280
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Of every text that is seen: how far it stands out from what is behind it, as WCAG counts.
_CONTRASTS = """() => {
  const numbers = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = colour => {
    const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = numbers(colour).map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor, alpha = numbers(colour)[3];
      if (alpha === undefined || alpha === 1) return colour;
    }
    return getComputedStyle(document.documentElement).backgroundColor;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || !element.checkVisibility() || element.closest('title, .beyond')) continue;
    const style = getComputedStyle(element);
    const colour = element.closest('svg') ? style.fill : style.color;
    const [a, b] = [light(colour), light(behind(element))].sort((x, y) => y - x);
    found.push([text, (a + 0.05) / (b + 0.05)]);
  }
  return found;
}"""

# Pairs of dates below a drawing that run into each other.
_COLLISIONS = """() => [...document.querySelectorAll('svg.coverage')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text:not(.beyond)')];
  const boxes = texts.map(text => [text.textContent, text.getBoundingClientRect()]);
  const seen = boxes.filter(box => box[1].width);
  seen.sort((a, b) => a[1].left - b[1].left);
  return seen.slice(1).filter((box, i) => box[1].left < seen[i][1].right + 2).map((box, i) => box[0]);
})"""


def _chromium() -> str | None:
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = _chromium()
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one with CHROMIUM=/path/to/chrome")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        yield launched
        launched.close()


@dataclass
class Visit:
    """A page that is open, with what it asked for and complained of."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def serving(html: str) -> Iterator[str]:
    """Serve a page with its policy, as the router does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # as the standard library calls it
            body = html.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Security-Policy", CSP)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/partitions"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def visiting(
    browser: Browser, shown: View, width: int, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Visit]:
    with serving(render(shown, request_id="6f1c2e0b54ad4f77")) as url:
        context = browser.new_context(viewport={"width": width, "height": 812}, color_scheme=scheme)
        visit = Visit(context.new_page())
        visit.page.on("console", lambda message: visit.complaints.append(message.text))
        visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        visit.page.on("request", lambda request: visit.requests.append(request.url))
        visit.page.goto(url)
        yield visit
        assert visit.complaints == []
        assert [asked for asked in visit.requests if not asked.startswith("data:")] == [url]
        context.close()


def overflow(page: Page) -> int:
    """How many pixels of the page lie to the right of the screen."""
    found: Any = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return int(found)


@pytest.mark.parametrize(
    ("width", "scheme"), [(DESK, "light"), (DESK, "dark"), (PHONE, "light"), (PHONE, "dark")]
)
def test_it_can_be_read(
    browser: Browser, tmp_path: Path, width: int, scheme: Literal["light", "dark"]
) -> None:
    with visiting(browser, a_bad_day(), width, scheme) as visit:
        page = visit.page
        page.screenshot(
            path=Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"page-{width}-{scheme}.png", full_page=True
        )
        assert overflow(page) == 0
        assert page.evaluate(_COLLISIONS) == []
        faint = [(text, ratio) for text, ratio in page.evaluate(_CONTRASTS) if ratio < 4.5]
        assert faint == []
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 18, 23)"
        assert dark is (scheme == "dark")
        # As a screen reader has it, cards or not.
        rows = page.get_by_role("table", name="Tables").get_by_role("rowheader")
        assert rows.count() == 8
        for row in rows.all():
            assert row.is_visible()
        drawings = page.get_by_role("img", name="Coverage of")
        assert drawings.count() == 8
        for drawing in drawings.all():
            whole, today = drawing.bounding_box(), drawing.locator(".now path").bounding_box()
            assert whole is not None
            assert today is not None
            assert whole["x"] < today["x"] < today["x"] + today["width"] < whole["x"] + whole["width"]
            assert whole["width"] > 300, "wide enough to be read"


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_details_open_by_keyboard(browser: Browser, width: int) -> None:
    with visiting(browser, a_bad_day(), width) as visit:
        page = visit.page
        listed = page.get_by_role("table", name="Partitions of stream_ingest.ladder_levels")
        assert not listed.is_visible()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert listed.get_by_role("rowheader").first.is_visible()
        assert overflow(page) == 0
        faint = [(text, ratio) for text, ratio in page.evaluate(_CONTRASTS) if ratio < 4.5]
        assert faint == []


@pytest.mark.parametrize("width", [DESK, PHONE, 320])
def test_long_and_hostile_names_fit_and_do_nothing(browser: Browser, width: int) -> None:
    long = f"racing.{'x' * 63}"
    with visiting(browser, view(seen(table(HOSTILE)), seen(table(long))), width) as visit:
        for summary in visit.page.locator("summary").all():
            summary.click()
        assert overflow(visit.page) == 0
        header = visit.page.get_by_role("rowheader", name=HOSTILE)
        assert header.first.inner_text().startswith(HOSTILE)


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_nothing_managed_yet(browser: Browser, width: int) -> None:
    with visiting(browser, View(), width) as visit:
        assert visit.page.get_by_role("heading", name="Nothing is managed yet").is_visible()
        assert overflow(visit.page) == 0


def test_on_paper_all_is_black_on_white(browser: Browser) -> None:
    with visiting(browser, a_bad_day(), DESK, "dark") as visit:
        visit.page.emulate_media(media="print", color_scheme="dark")
        assert [(text, ratio) for text, ratio in visit.page.evaluate(_CONTRASTS) if ratio < 4.5] == []
        assert visit.page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 34, 40)"
