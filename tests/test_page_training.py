"""The page of a training run: what it reads, and what people see in headless Chromium."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from unspool.page import read_result, render_page, write_page
from unspool.page_training import MOST_POINTS, read_learning, thinned

if TYPE_CHECKING:
    from chromium import Browser


def make_run(folder: Path, steps: int = 40, done: int = 40, status: str = "done", slope: float = 1.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "unspool": "0.1.0", "verb": "train dul", "command": ["unspool", "train", "dul"], "status": status,
        "steps": steps, "config": {"preset": "dul-small"}, "model": {"name": "random"}, "videos": [],
        "started": "2026-01-01T00:00:00+00:00", "ended": None,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    lines: list[dict[str, Any]] = []
    (folder / "pictures").mkdir(exist_ok=True)
    Image.new("RGB", (80, 40), "green").save(folder / "pictures/truth.jpg")
    for step in range(done + 1):
        if step:
            rates = {"frames_per_second": 80.0 + step % 3, "loading": 0.1, "learning_rate": 1e-4}
            loss = 6 - slope * step / 20 + step % 2
            lines.append({"step": step, "epoch": step / 9, "loss": loss, "space_time": 5.0, **rates,
                          "memory_gb": 1.0, "seconds": 2.0 * step})  # fmt: skip
        if step % 10 == 0:
            score = 0.2 + slope * step / 100
            lines.append({"step": step, "J": score, "F": score + 0.1, "J&F": score + 0.05})
            Image.new("RGB", (80, 40), (step, 0, 0)).save(folder / f"pictures/step-{step:06d}.jpg")
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_the_first_glance_says_how_far_how_well_and_how_long(tmp_path: Path) -> None:
    text = write_page(make_run(tmp_path / "mine")).read_text("utf-8")
    assert "<h1>mine</h1>" in text
    for expected in ("40 of 40 steps", "dul-small", "from random", "60.0", "best at step 40", "1 min 20 s"):
        assert expected in text
    assert "0 videos" not in text


def test_a_run_that_still_learns_says_so(tmp_path: Path) -> None:
    text = write_page(make_run(tmp_path, steps=500, done=23, status="running")).read_text("utf-8")
    assert "step 23 of 500 when this page was written. Reload to see the newest." in text


def test_a_run_that_has_not_begun_makes_a_page(tmp_path: Path) -> None:
    make_run(tmp_path, status="running")
    for name in ("log.jsonl", "pictures/truth.jpg"):
        (tmp_path / name).unlink()
    assert "Still learning" in write_page(tmp_path).read_text("utf-8")


def test_a_line_that_a_kill_has_cut_is_passed_over(tmp_path: Path) -> None:
    make_run(tmp_path, done=5)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')
    learning = read_learning(tmp_path, 40)
    assert learning is not None
    assert learning.step == 5


def test_what_is_not_finite_is_not_drawn(tmp_path: Path) -> None:
    make_run(tmp_path, done=5)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "loss": NaN}\n')
    text = write_page(tmp_path).read_text("utf-8")
    assert "NaN" not in text


def test_long_curves_are_thinned_to_means() -> None:
    points = [(step, float(step % 2)) for step in range(10 * MOST_POINTS)]
    short = thinned(points)
    assert len(short) == MOST_POINTS
    assert {value for _, value in short} == {0.5}
    assert short[-1][0] == points[-1][0]


def test_the_table_marks_the_best_validation(tmp_path: Path) -> None:
    text = write_page(make_run(tmp_path)).read_text("utf-8")
    assert text.count("best J") == 1
    assert text.index("best J") > text.index('data-value="40"')


def test_validations_are_named_by_their_protocol_and_tell_of_clusters_where_clips_are_cut(
    tmp_path: Path,
) -> None:
    tracked = write_page(make_run(tmp_path)).read_text("utf-8")
    assert "davis17-semi on rendered clips" in tracked
    assert ">clusters<" not in tracked
    log = tmp_path / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    cut = [{**row, "clusters": 7.5} if "J" in row else row for row in rows]
    log.write_text("".join(json.dumps(row) + "\n" for row in cut), "utf-8")
    text = write_page(tmp_path).read_text("utf-8")
    assert "davis17-unsup on rendered clips" in text
    assert "davis17-semi" not in text
    assert ">clusters<" in text and "<td>7.5</td>" in text


def test_a_tracking_result_has_no_curves(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"verb": "track"}')
    assert 'id="learning"' not in write_page(tmp_path).read_text("utf-8")


def test_a_training_run_and_another_result_stand_side_by_side(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/run.json").write_text('{"verb": "track"}')
    results = [read_result(tmp_path / name) for name in "ab"]
    assert 'id="learning"' in render_page(results, ["a/", "b/"])


# --------------------------------------------------------------------------------------- the browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no Chromium with its driver on this machine")
    from chromium import Browser as Started

    session = Started(tmp_path_factory.mktemp("profile"))
    yield session
    session.close()


def points(browser: Browser, chart: str) -> str:
    line = f"document.querySelector('[data-chart=\"{chart}\"] polyline:last-of-type')"
    found: str = browser.run(f"return {line}.getAttribute('points')")
    return found


def test_curves_are_drawn_and_smoothing_changes_the_noisy_ones(tmp_path: Path, browser: Browser) -> None:
    browser.open(write_page(make_run(tmp_path)))
    browser.until("s.charts === 7")
    before = [points(browser, chart) for chart in ("Loss", "Learning rate")]
    browser.run(
        "const s = document.getElementById('smoothing'); s.value = 0; s.dispatchEvent(new Event('input'))"
    )
    after = [points(browser, chart) for chart in ("Loss", "Learning rate")]
    assert before[0] != after[0]
    assert before[1] == after[1]
    assert browser.errors() == []


def test_the_pointer_reads_values_and_leaving_shows_the_newest(tmp_path: Path, browser: Browser) -> None:
    browser.open(write_page(make_run(tmp_path)))
    browser.until("s.charts === 7")
    read = "return document.querySelector('[data-chart=scores] output').textContent"
    assert browser.run(read) == "J 60F 70step 40"
    browser.run(
        "const v = document.querySelector('[data-chart=scores] svg'), b = v.getBoundingClientRect();"
        "const middle = {clientX: b.left + 52 + (b.width - 64) / 2, clientY: b.top};"
        "v.dispatchEvent(new PointerEvent('pointermove', middle))"
    )
    assert browser.run(read) == "J 40F 50step 20"
    browser.run(
        "document.querySelector('[data-chart=scores] svg').dispatchEvent(new PointerEvent('pointerleave'))"
    )
    assert browser.run(read) == "J 60F 70step 40"


def test_pictures_follow_the_slider_and_begin_with_the_newest(tmp_path: Path, browser: Browser) -> None:
    browser.open(write_page(make_run(tmp_path)))
    browser.until("s.charts === 7")
    shown = "return document.querySelector('img[data-pictures]').getAttribute('src')"
    assert browser.run(shown) == "pictures/step-000040.jpg"
    browser.run(
        "const s = document.getElementById('picture-step'); s.value = 1; s.dispatchEvent(new Event('input'))"
    )
    assert browser.run(shown) == "pictures/step-000010.jpg"
    assert browser.run("return document.getElementById('picture-now').textContent") == "step 10"
    assert browser.run("return document.querySelector('img[data-pictures]').naturalWidth") == 80


def test_a_reload_shows_the_newest(tmp_path: Path, browser: Browser) -> None:
    page = write_page(make_run(tmp_path, done=10, status="running"))
    browser.open(page)
    write_page(make_run(tmp_path, done=40))
    browser.open(page)
    assert "40 of 40 steps" in browser.run("return document.body.textContent")


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_nothing_scrolls_sideways(tmp_path: Path, browser: Browser, width: int) -> None:
    browser.open(write_page(make_run(tmp_path)), width=width)
    browser.until("s.charts === 7")
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


def test_two_runs_share_their_charts_and_their_slider(tmp_path: Path, browser: Browser) -> None:
    results = [read_result(make_run(tmp_path / name, slope=slope)) for name, slope in (("a", 1), ("b", 0.5))]
    (tmp_path / "both.html").write_text(render_page(results, ["a/", "b/"]), "utf-8")
    browser.open(tmp_path / "both.html")
    browser.until("s.charts === 7")
    read = "return document.querySelector('[data-chart=scores] output').textContent"
    assert browser.run(read) == "A J 60A F 70B J 40B F 50step 40"
    sources = "return [...document.querySelectorAll('img[data-pictures]')].map((i) => i.getAttribute('src'))"
    assert browser.run(sources) == ["a/pictures/step-000040.jpg", "b/pictures/step-000040.jpg"]
    assert browser.errors() == []
