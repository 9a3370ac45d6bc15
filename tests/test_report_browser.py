"""The page in a real browser: it switches, says nothing to the console, and asks nobody for anything.

playwright drives the system's Chromium; it is in the extra `browser`. Where either is missing, they are skipped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inheritune.report import served, write_comparison, write_report
from report_runs import full_run, with_speed
from test_report import make_run

playwright = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")]
WIDTHS = {"phone": 375, "tablet": 768, "wide": 1280}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(full_run(tmp_path_factory.mktemp("page") / "run"))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    runs = [full_run(folder / "one"), make_run(folder / "two")]
    with_speed(runs[1], 4096.0)
    return write_comparison(runs, folder / "both")


class Visit:
    """A page that is open, with what it said and asked for."""

    def __init__(self, browser: Any, address: str, **settings: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)

    def shown(self, selector: str) -> list[int]:
        """Which of the elements can be seen, by place."""
        found = self.page.locator(selector)
        return [place for place in range(found.count()) if found.nth(place).is_visible()]


@pytest.fixture(params=["single", "several"])
def address(request: pytest.FixtureRequest) -> str:
    path: Path = request.getfixturevalue(request.param)
    return path.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_no_console_message_no_request_and_nothing_wider_than_the_screen(
    browser: Any, address: str, width: int, scheme: str
) -> None:
    visit = Visit(browser, address, viewport={"width": width, "height": 900}, color_scheme=scheme)
    visit.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert visit.said == []
    assert visit.asked == [address]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in ground[4:-1].split(",")) < 200) == (scheme == "dark")
    assert visit.page.locator(".wide").first.is_visible() == (width > 640)
    visit.context.close()


@pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without"])
def test_the_axis_is_switched_by_mouse_and_by_keyboard(browser: Any, address: str, scripts: bool) -> None:
    visit = Visit(browser, address, viewport={"width": 1280, "height": 900}, java_script_enabled=scripts)
    assert visit.shown(".switched >> nth=0 >> figure") == [0]
    labels = visit.page.locator(".switch").first.locator("label")
    assert labels.all_inner_texts() == ["Tokens", "Steps", "FLOPs", "Minutes"]
    visit.page.locator(".switch").first.locator("input").nth(2).click()
    assert visit.shown(".switched >> nth=0 >> figure") == [2]
    assert "Training FLOPs" in visit.page.locator(".switched figure").nth(2).inner_text()
    visit.page.keyboard.press("ArrowRight")
    assert visit.shown(".switched >> nth=0 >> figure") == [3]
    assert "Training time, minutes" in visit.page.locator(".switched figure").nth(3).inner_text()
    visit.context.close()


def test_the_keyboard_reaches_what_there_is_to_switch_and_to_open(browser: Any, single: Path) -> None:
    visit = Visit(browser, single.as_uri(), viewport={"width": 1280, "height": 900})
    reached = set()
    for _ in range(40):
        visit.page.keyboard.press("Tab")
        reached.add(visit.page.evaluate("document.activeElement.tagName"))
    assert {"INPUT", "SUMMARY", "PRE"} <= reached
    visit.page.locator("summary", has_text="Recipe").focus()
    visit.page.keyboard.press("Enter")
    assert visit.page.get_by_text("tokens: 1024000").is_visible()
    visit.context.close()


def test_a_screen_reader_hears_figures_and_switches_by_name(browser: Any, single: Path) -> None:
    visit = Visit(browser, single.as_uri(), viewport={"width": 1280, "height": 900})
    assert visit.page.get_by_role("radio", name="FLOPs").count() == 1
    assert visit.page.get_by_role("group", name="Against").count() == 1
    figures = visit.page.locator("[role=img]:visible")
    assert all(figures.nth(place).get_attribute("aria-label") for place in range(figures.count()))
    assert figures.count() >= 3  # curves, rounds, attention
    assert visit.page.get_by_role("heading", level=1).count() == 1
    visit.context.close()


def test_print_shows_what_is_folded_away_on_light_paper(browser: Any, single: Path) -> None:
    visit = Visit(browser, single.as_uri(), viewport={"width": 800, "height": 900}, color_scheme="dark")
    visit.page.emulate_media(media="print")
    assert visit.page.get_by_text("tokens: 1024000").is_visible()
    assert not visit.page.locator(".switch").first.is_visible()
    ink = visit.page.evaluate("getComputedStyle(document.body).color")
    assert sum(int(part) for part in ink[4:-1].split(",")) < 200
    visit.context.close()


def test_a_watched_page_changes_and_keeps_what_the_reader_chose(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inheritune.report.watch._DRAW_EVERY_SECONDS", 0.0)
    run = full_run(tmp_path / "run")
    with served([run]) as address:
        visit = Visit(browser, address, viewport={"width": 1280, "height": 900})
        visit.page.get_by_role("radio", name="Steps").click()
        visit.page.locator("summary", has_text="Environment").click()
        text = (run / "result.json").read_text(encoding="utf-8")
        (run / "result.json").write_text(
            text.replace("close 0.83 of the gap", "close 0.99 of the gap"), encoding="utf-8"
        )
        visit.page.get_by_text("close 0.99 of the gap").first.wait_for()
        assert visit.page.get_by_role("radio", name="Steps").is_checked()
        assert visit.page.get_by_text("0123abc", exact=True).is_visible()
        assert "last change" in visit.page.get_by_role("status").inner_text()
        assert set(visit.asked) == {address}
        assert visit.said == []
    visit.context.close()
