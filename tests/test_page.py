"""The page as people meet it: in headless Chromium from disk, and over loopback as `unspool view` serves it.

One browser serves all tests; without Chromium and its driver the tests that need it are skipped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
import pytest
from make_result import COLOURS, READ_BAR_CODE, Clip, image, label_map, make_result
from test_page_server import serving

from unspool.errors import OutputError
from unspool.page import duration, read_result, write_page
from unspool.page_server import Server
from unspool.results import Run
from unspool.video_result import VideoResult

if TYPE_CHECKING:
    from chromium import Browser

HOSTILE = ("<script>window.hacked=1<script>", "a\"b'c&d", "50% #1?", "日本 ünï", "x" * 120)
VARIABLE = [Fraction(t, 1000) for t in (500, 540, 545, 700, 1450, 1483, 1517, 1600, 2100, 2200)]


# ---------------------------------------------------------------------------------- without a browser


def test_page_names_verb_model_scores_and_time(tmp_path: Path) -> None:
    page = write_page(make_result(tmp_path, [Clip("swan")], verb="eval tracking", model="dino-vits8"))
    text = page.read_text("utf-8")
    for expected in ("swan", "eval tracking", "dino-vits8", "davis17-semi", "J&amp;F", "2 min 31 s"):
        assert expected in text
    assert "randomly initialised" not in text


def test_random_weights_are_called_so(tmp_path: Path) -> None:
    assert "randomly initialised" in write_page(make_result(tmp_path, [Clip("swan")])).read_text("utf-8")


def test_videos_are_listed_worst_first_with_the_failed_ones_on_top(tmp_path: Path) -> None:
    clips = [Clip("good", shift=1), Clip("bad", shift=9), Clip("lost", error="cannot be decoded")]
    make_result(tmp_path, clips)
    assert [entry.name for entry in read_result(tmp_path).entries] == ["lost", "bad", "good"]


def test_without_truth_videos_are_listed_by_name(tmp_path: Path) -> None:
    make_result(tmp_path, [Clip(name, truth=False) for name in "cab"])
    assert [entry.name for entry in read_result(tmp_path).entries] == ["a", "b", "c"]


def test_tracked_and_segmented_videos_are_counted_apart(tmp_path: Path) -> None:
    make_result(tmp_path, [Clip("one", frames=4), Clip("one-segmented", frames=2, objects=5, truth=False)])
    assert read_result(tmp_path).counts == [("", 6, 7)]
    done = tmp_path / "videos" / "one-segmented" / "done.json"
    done.write_text(json.dumps({**json.loads(done.read_text()), "clusters": 5}))
    assert read_result(tmp_path).counts == [("tracked", 4, 2), ("segmented", 2, 5)]
    text = " ".join(write_page(tmp_path).read_text("utf-8").split())
    assert "<li>tracked: 4 frames, 2 objects</li> <li>segmented: 2 frames, 5 objects</li>" in text
    assert "<td>4</td><td>2</td>" in text.split("<tfoot>")[1]


def test_hostile_names_are_escaped_in_the_page(tmp_path: Path) -> None:
    page = write_page(make_result(tmp_path, [Clip(name, frames=2) for name in HOSTILE]))
    text = page.read_text("utf-8")
    assert "<script>window" not in text
    assert f"videos/{quote(HOSTILE[2])}/thumbs.jpg" in text


def test_video_that_is_finished_but_not_yet_listed_is_shown(tmp_path: Path) -> None:
    make_result(tmp_path, [Clip("swan")], status="running")
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**run, "videos": []}))
    assert [entry.name for entry in read_result(tmp_path).entries] == ["swan"]


def test_run_json_that_says_little_still_makes_a_page(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert "0 videos" in write_page(tmp_path).read_text("utf-8")


def test_folder_without_run_json_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no readable run\.json; name a folder"):
        write_page(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.42, "0.4 s"), (59.4, "59 s"), (151, "2 min 31 s"), (11100, "3 h 05 min")],
)
def test_durations_read_like_speech(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


# --------------------------------------------------------------------------------------- the browser


DOG = Clip("dog", shift=6, objects=3)
CATCH_CLIPBOARD = """
    const writeText = async (text) => { window.text = text; };
    Object.defineProperty(navigator, 'clipboard', {value: {writeText}});
"""


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    module = pytest.importorskip("chromium", reason="selenium is not installed")
    for program in module.PROGRAMS:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    browser: Browser = module.Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


served = pytest.fixture(serving, name="served")


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages that tests only look at."""
    root = tmp_path_factory.mktemp("results")
    results = {
        "two": [
            Clip("swan", shift=1),
            Clip("dog", shift=6, objects=3),
            Clip("lost", error="cannot be decoded"),
        ],
        "sparse": [Clip("sparse", frames=6, truth_every=5)],
        "plain": [Clip("plain", truth=False, warnings=("frame 3 is lost",))],
        "long": [Clip("long", frames=1200, size=(96, 96), objects=1)],
        "blind": [Clip("blind", playable=False)],
        "hostile": [Clip(name, frames=3) for name in HOSTILE],
        "variable": [Clip("variable", frames=len(VARIABLE), times=VARIABLE), Clip("even", frames=40)],
    }
    return {name: write_page(make_result(root / name, clips)) for name, clips in results.items()}


def rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def close_to(pixel: list[int], colour: list[int]) -> bool:
    """Premultiplied storage rounds by a few steps."""
    return all(abs(a - b) <= 3 for a, b in zip(pixel, colour, strict=False))


def inside(clip: Clip, frame: int, label: int, shift: int = 0) -> tuple[int, int]:
    """A pixel well inside an object (of the prediction with `shift`)."""
    rows, columns = (label_map(clip, frame, shift) == label).nonzero()
    return int(rows.mean()), int(columns.mean())


def test_page_opens_from_disk_without_errors_and_shows_the_worst_video(
    chromium: Browser, pages: dict[str, Path]
) -> None:
    chromium.open(pages["two"])
    chromium.until("s.video === 'dog' && s.painted === 0 && !s.blind")
    assert chromium.errors() == []


def test_page_asks_for_nothing_but_its_own_files(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["two"])
    chromium.until("s.painted === 0")
    asked = chromium.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(address.startswith(pages["two"].parent.as_uri()) for address in asked)


def test_canvas_shows_an_object_in_its_own_colour(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["two"])
    chromium.until("s.painted === 0")
    for label in (1, 2, 3):
        pixel = chromium.pixel(*inside(DOG, 0, label, DOG.shift))
        assert close_to(pixel, rgb(COLOURS[label - 1]))
        assert 120 < pixel[3] < 136
    assert chromium.pixel(95, 159) == [0, 0, 0, 0]


def test_arrow_keys_step_by_one_and_by_ten_and_the_overlay_follows(
    chromium: Browser, pages: dict[str, Path]
) -> None:
    chromium.open(pages["two"])
    chromium.until("s.painted === 0")
    chromium.press("ArrowRight", "ArrowRight")
    chromium.until("s.position === 2 && s.painted === 2")
    chromium.press("ArrowRight", shift=True)
    chromium.until("s.painted === 12")
    assert chromium.pixel(*inside(DOG, 12, 1, DOG.shift))[3] > 0
    assert chromium.pixel(*inside(DOG, 0, 1, DOG.shift))[3] == 0
    assert chromium.pixel(*inside(DOG, 0, 2, DOG.shift))[3] == 0  # gone in the middle third
    chromium.press("ArrowLeft")
    chromium.until("s.painted === 11")
    chromium.press("ArrowLeft", "ArrowLeft", shift=True)
    chromium.until("s.painted === 0")


def test_late_word_of_the_seek_before_leaves_the_newest_frame_painted(
    chromium: Browser, pages: dict[str, Path]
) -> None:
    chromium.open(pages["two"])
    chromium.until("s.painted === 0 && !s.blind")
    chromium.run("""
        window.film = document.querySelector("video");
        film.requestVideoFrameCallback = (call) => { window.late = call; };
        unspool.goTo(1);
    """)
    chromium.until("s.painted === 1 && window.late && !film.seeking")
    chromium.run("""
        const mediaTime = film.currentTime - 0.01; // seeks go to the middle of a frame
        let seeks = 0;
        film.addEventListener("seeking", () => ++seeks === 2 && late(0, { mediaTime }));
        unspool.goTo(0);
        unspool.goTo(2);
    """)
    chromium.until("s.position === 2 && s.painted === 2")


@pytest.mark.parametrize("name", ["variable", "even"])
def test_shown_picture_is_the_frame_that_the_page_names(
    chromium: Browser, pages: dict[str, Path], served: Callable[..., Server], name: str
) -> None:
    server = served(pages["variable"].parent)  # from disk the browser forbids to read the video back
    chromium.open(f"{server.url}#video={name}")
    chromium.until(f"s.video === '{name}' && s.painted === 0 && !s.blind")
    frames = len(VARIABLE) if name == "variable" else 40
    for frame in [*range(min(frames, 10)), frames - 1, frames // 2, 1, 0]:
        chromium.run("unspool.goTo(arguments[0])", frame)
        chromium.until(f"s.painted === {frame} && !document.querySelector('video').seeking")
        assert chromium.run(READ_BAR_CODE, 1) == frame


def test_page_shows_what_results_writes(
    chromium: Browser, tmp_path: Path, served: Callable[..., Server]
) -> None:
    clip = Clip("swan", frames=len(VARIABLE), times=VARIABLE)
    run = Run(tmp_path, {"verb": "track", "command": ["unspool", "track"], "config": {}, "model": {}})
    scores = {"protocol": "davis17-semi", "J": 0.5, "F": 0.7, "J&F": 0.6}
    curves = {metric: {"1": [None, *[0.5] * 8, None], "2": [None] * 10} for metric in "JF"}
    with VideoResult(
        tmp_path, "swan", source="swan.mp4", height=96, width=160, times=VARIABLE,
        pixel_aspect=Fraction(4, 3), with_truth=True,
    ) as result:  # fmt: skip
        for frame in range(clip.frames):
            result.write(image(clip, frame), label_map(clip, frame, 2), label_map(clip, frame))
        done = result.finish(seconds=1.0, scores=scores, curves=curves)
    run.video({**done, "status": "done"})
    run.end("done")
    chromium.open(served(tmp_path).url)
    chromium.until("s.painted === 0 && !s.blind")
    for frame in (3, 9, 1, 0, 4):
        chromium.run("unspool.goTo(arguments[0])", frame)
        chromium.until(f"s.painted === {frame} && !document.querySelector('video').seeking")
        assert chromium.run(READ_BAR_CODE, 4 / 3) == frame
        assert chromium.pixel(*inside(clip, frame, 1, 2))[3] > 0
    chromium.run("window.box = document.getElementById('frame').getBoundingClientRect()")
    assert chromium.run("return box.width / box.height") == pytest.approx(160 / 96 * 4 / 3, rel=0.02)
    assert "60.0" in chromium.run("return document.getElementById('scores').innerText")
    assert chromium.run("return document.querySelectorAll('.curve').length") == 2
    assert chromium.errors() == []


def test_playing_paints_each_frame_with_its_own_objects(
    chromium: Browser, pages: dict[str, Path], served: Callable[..., Server]
) -> None:
    chromium.open(f"{served(pages['variable'].parent).url}#video=even")
    chromium.until("s.video === 'even' && s.painted === 0 && !s.blind")
    chromium.press(" ")
    chromium.until("s.playing && s.painted > 5")
    chromium.press(" ")
    chromium.until("!s.playing")
    chromium.run(f"window.barCode = function () {{ {READ_BAR_CODE} }}")
    chromium.until("s.painted === s.position && s.painted === barCode(1)")
    chromium.press(" ")
    chromium.until("!s.playing && s.painted === 39")


def test_play_right_after_the_end_begins_again(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["two"])
    chromium.until("s.painted === 0 && !s.blind")
    chromium.run("""
        const film = document.querySelector("video"), play = document.getElementById("play");
        window.ends = 0;
        window.times = [];
        film.addEventListener("ended", () => ++ends === 1 && play.click());
        film.addEventListener("timeupdate", () => ends && times.push(film.currentTime / film.duration));
        play.click();
    """)
    chromium.until("window.ends === 2 && !s.playing && s.painted === 23")
    assert chromium.run("return Math.min(...times)") < 0.5


def test_number_keys_and_chips_switch_objects_off_and_on(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["two"])
    chromium.until("s.painted === 0")
    place = inside(DOG, 0, 2, DOG.shift)
    chromium.press("2")
    assert chromium.state()["off"] == [2]
    assert chromium.pixel(*place)[3] == 0
    assert chromium.run("return document.querySelector('.chip[data-id=\"2\"]').ariaPressed") == "false"
    chromium.run("document.querySelector('.chip[data-id=\"2\"]').click()")
    assert chromium.pixel(*place)[3] > 0


def test_of_many_objects_the_largest_are_listed_until_all_are_asked_for(
    chromium: Browser, tmp_path: Path
) -> None:
    chromium.open(write_page(make_result(tmp_path, [Clip("crowd", frames=6, objects=20, truth=False)])))
    chromium.until("s.painted === 0")
    listed = "return [...document.querySelectorAll('#bands .chip')].map((c) => Number(c.dataset.id))"
    few = chromium.run(listed)
    areas = np.bincount(
        np.concatenate([label_map(Clip("", 6, objects=20), t, 2).ravel() for t in range(6)]), minlength=21
    )
    assert sorted(few) == few
    assert len(few) == 12
    assert areas[few].min() >= max(areas[k] for k in range(1, 21) if k not in few)
    chromium.press("1")
    chromium.run("document.querySelector('#bands .more').click()")
    assert chromium.run(listed) == list(range(1, 21))
    assert chromium.run("return document.querySelector('.chip[data-id=\"1\"]').ariaPressed") == "false"
    chromium.run("document.querySelector('#bands .more').click()")
    assert chromium.run(listed) == few


def test_a_page_of_few_objects_has_no_button_for_all(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["two"])
    chromium.until("s.painted === 0")
    assert chromium.run("return document.querySelectorAll('#bands .more').length") == 0


def test_on_a_phone_a_wide_table_scrolls_by_itself(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["two"], width=390)
    page, shown, whole = chromium.run(
        "const t = document.querySelector('#scores').closest('.scroll');"
        "return [document.documentElement.scrollWidth - innerWidth, t.clientWidth, t.scrollWidth]"
    )
    assert page <= 0
    assert shown <= 390 < whole


def test_t_shows_the_truth_and_d_the_difference(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["two"])
    chromium.until("s.painted === 0")
    row, column = inside(DOG, 0, 1)
    columns = (label_map(DOG, 0)[row] == 1).nonzero()[0]
    missed, extra = (row, int(columns[1])), (row, int(columns[-1]) + DOG.shift - 1)
    assert chromium.pixel(*missed)[3] == 0
    chromium.press("t")
    assert chromium.state()["view"] == "truth"
    assert close_to(chromium.pixel(*missed), rgb(COLOURS[0]))
    assert chromium.pixel(*extra)[3] == 0
    chromium.press("d")
    assert close_to(chromium.pixel(*missed), rgb("#56b4e9"))
    assert close_to(chromium.pixel(*extra), rgb("#d55e00"))
    assert close_to(chromium.pixel(row, column), rgb("#9aa5b1"))
    assert not chromium.run("return document.getElementById('legend').hidden")
    chromium.press("d")
    assert chromium.state()["view"] == "prediction"


def test_frame_without_truth_among_others_says_so(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["sparse"])
    chromium.until("s.painted === 0")
    chromium.press("t")
    hidden = "return document.getElementById('unknown').hidden"
    assert chromium.run(hidden)
    chromium.press("ArrowRight")
    chromium.until("s.painted === 1")
    assert not chromium.run(hidden)
    assert chromium.pixel(*inside(Clip("sparse", frames=6), 1, 1))[3] == 0


def test_without_truth_the_page_does_not_offer_it(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["plain"])
    chromium.until("s.painted === 0")
    chromium.press("t", "d")
    assert chromium.state()["view"] == "prediction"
    assert chromium.run("return document.getElementById('views').hidden")
    assert "frame 3 is lost" in chromium.run("return document.getElementById('video-warnings').textContent")


def test_brackets_go_to_the_neighbouring_video_and_a_failed_one_says_why(
    chromium: Browser, pages: dict[str, Path]
) -> None:
    chromium.open(pages["two"])
    chromium.until("s.painted === 0")
    chromium.press("]")
    chromium.until("s.video === 'swan' && s.painted === 0")
    chromium.press("[", "[")
    chromium.until("s.video === 'lost'")
    assert chromium.run("return document.getElementById('message').textContent") == "cannot be decoded"


def test_question_mark_opens_the_help_and_escape_is_left_to_the_dialog(
    chromium: Browser, pages: dict[str, Path]
) -> None:
    chromium.open(pages["two"])
    chromium.until("s.painted === 0")
    chromium.press("?")
    assert chromium.run("return document.getElementById('help').open")
    chromium.press("ArrowRight")
    assert chromium.state()["position"] == 0
    chromium.run("document.querySelector('#help button').click()")
    assert not chromium.run("return document.getElementById('help').open")


def test_clicking_a_curve_goes_to_that_frame(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["two"])
    chromium.until("s.painted === 0 && !s.blind")
    chromium.run("""
        const curve = document.querySelector('.curve');
        const box = curve.getBoundingClientRect();
        curve.dispatchEvent(new PointerEvent('pointerdown', {clientX: box.left + box.width * 10.5 / 24,
            clientY: box.top + 5, pointerId: 1, bubbles: true}));
    """)
    chromium.until("s.painted === 10")


def test_chunks_are_loaded_only_when_their_frames_are_wanted(
    chromium: Browser, pages: dict[str, Path]
) -> None:
    chromium.open(pages["long"])
    chromium.until("s.painted === 0")
    assert chromium.state()["chunks"] == [[0]]
    chromium.run("document.getElementById('scrub').focus()")
    chromium.press("End")
    chromium.until("s.painted === 1199")
    assert chromium.state()["chunks"] == [[0, 2]]


def test_table_is_copied_as_text_and_saved_as_csv(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["two"])
    chromium.run(CATCH_CLIPBOARD)
    chromium.run("""
        const address = URL.createObjectURL;
        URL.createObjectURL = (blob) => {
            blob.text().then((text) => { window.csv = text; });
            return address(blob);
        };
        document.getElementById('per-object').click();
        document.querySelector('[data-copy-table]').click();
        document.querySelector('[data-save-table]').click();
    """)
    chromium.until("window.text && window.csv")
    lines = [line.split("\t") for line in chromium.run("return window.text").splitlines()]
    assert lines[0][:3] == ["video", "J&F-Mean", "J-Mean"]
    assert [line[0] for line in lines[1:]] == [
        "lost",
        "dog",
        "dog, object 1",
        "swan",
        "swan, object 1",
        "all",
    ]
    mean = json.loads((pages["two"].parent / "videos/dog/done.json").read_text())["scores"]["J"]
    assert float(lines[2][2]) == pytest.approx(mean)
    assert '"dog, object 1",' in chromium.run("return window.csv")


def test_command_is_copied_as_it_must_be_typed(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["plain"])
    chromium.run(CATCH_CLIPBOARD)
    chromium.run("document.querySelector('[data-copy-text]').click()")
    typed = "unspool track 'footage/*.mp4' --mask 'first masks/' --model random-resnet18"
    assert chromium.run("return window.text") == typed


@pytest.mark.parametrize("name", ["two", "plain", "hostile"])
def test_phone_needs_no_sideways_scrolling(chromium: Browser, pages: dict[str, Path], name: str) -> None:
    chromium.open(pages[name], 390, 844)
    chromium.until("s.painted === 0")
    wide = "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
    assert chromium.run(wide) == 0


def test_hostile_names_are_shown_as_they_are_and_do_nothing(
    chromium: Browser, pages: dict[str, Path]
) -> None:
    chromium.open(pages["hostile"])
    seen = set()
    for _ in HOSTILE:
        chromium.until("s.painted === 0 && !s.blind")
        seen.add(chromium.run("return document.getElementById('video-title').textContent"))
        chromium.press("]")
    assert seen == set(HOSTILE)
    assert chromium.run("return window.hacked") is None
    assert chromium.errors() == []


def test_without_plain_frames_objects_play_on_neutral_ground(
    chromium: Browser, pages: dict[str, Path]
) -> None:
    chromium.open(pages["blind"])
    chromium.until("s.painted === 0 && s.blind")
    chromium.press("ArrowRight")
    chromium.until("s.painted === 1")
    chromium.press(" ")
    chromium.until("s.painted === 23 && !s.playing")


def test_running_job_shows_what_is_done_and_says_so(chromium: Browser, tmp_path: Path) -> None:
    make_result(tmp_path, [Clip("swan")], status="running")
    run = json.loads((tmp_path / "run.json").read_text())
    run["videos"].append({"name": "later", "source": "later.mp4", "status": "running"})
    (tmp_path / "run.json").write_text(json.dumps(run))
    chromium.open(write_page(tmp_path))
    chromium.until("s.video === 'swan' && s.painted === 0")
    assert "1 video done" in chromium.run("return document.querySelector('.banner').textContent")
    chromium.press("]")
    chromium.until("s.video === 'later'")
    assert "reload later" in chromium.run("return document.getElementById('message').textContent")


def test_scores_alone_make_a_page_without_player(chromium: Browser, tmp_path: Path) -> None:
    make_result(tmp_path, [Clip("swan")], verb="eval tracking")
    for gone in ("videos", "data"):
        shutil.rmtree(tmp_path / gone)
    chromium.open(write_page(tmp_path))
    assert chromium.run("return document.querySelector('main').hidden")
    assert "swan" in chromium.run("return document.getElementById('scores').innerText")
    assert chromium.errors() == []


def test_theme_follows_the_system_and_the_button(chromium: Browser, pages: dict[str, Path]) -> None:
    for scheme in ("dark", "light"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        chromium.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        chromium.open(pages["plain"])
        assert chromium.run("return document.documentElement.dataset.theme") == scheme
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = chromium.run(ground)
    chromium.run("document.getElementById('theme').click()")
    assert chromium.run(ground) != light
    chromium.run("localStorage.clear()")


def test_everything_to_press_has_a_name(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["two"])
    chromium.until("s.painted === 0")
    nameless = chromium.run("""
        return [...document.querySelectorAll('button, input, a, [role=slider], canvas[role=img]')]
            .filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.[0]?.textContent.trim()))
            .map((e) => e.outerHTML);
    """)
    assert nameless == []


def test_two_results_show_the_same_frame_on_both_sides_of_the_wipe(
    chromium: Browser, tmp_path: Path, served: Callable[..., Server]
) -> None:
    a, b = (Clip("swan", shift=shift) for shift in (0, 20))
    folders = [make_result(tmp_path / name, [clip]) for name, clip in (("a", a), ("b", b))]
    chromium.open(served(*folders).url)
    chromium.until("s.painted === 0 && s.chunks.length === 2")
    chromium.press("ArrowRight", "ArrowRight", "ArrowRight")
    chromium.until("s.painted === 3")
    assert chromium.pixel(*inside(a, 3, 1), 0)[3] > 0
    assert chromium.pixel(*inside(a, 3, 1), 1)[3] == 0
    assert chromium.pixel(*inside(b, 3, 1, b.shift), 1)[3] > 0
    chromium.run(
        "const w = document.getElementById('wipe'); w.value = 20; w.dispatchEvent(new Event('input'))"
    )
    clip = "return getComputedStyle(document.querySelectorAll('canvas.mask')[arguments[0]]).clipPath"
    assert [chromium.run(clip, i) for i in (0, 1)] == ["inset(0px 80% 0px 0px)", "inset(0px 0px 0px 20%)"]
    assert chromium.errors() == []
