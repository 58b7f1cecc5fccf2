"""The page of a segmentation in headless Chromium: the slider, objects, where patches attend, saved masks."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_page import chromium  # noqa: F401 (a fixture)

from unspool.masks import davis_palette, read_mask, read_truth
from unspool.ops.clustering import Clustering
from unspool.ops.hierarchy import joined
from unspool.page import write_page
from unspool.results import Run
from unspool.segmentation import Segmentation
from unspool.segmenting import KeyFrames, Segmenting
from unspool.segments import AttentionWriter, Chosen, read_hierarchy, write_hierarchy, write_tree
from unspool.verbs.segment import SegmentJob, for_page
from unspool.verbs.segment_settings import SegmentSettings
from unspool.video_result import VideoResult

if TYPE_CHECKING:
    from chromium import Browser

GRID, SIZE, FRAMES, PATCH = (4, 6), (32, 48), 4, 8
HEADS, CHANNELS = 2, 4
CHOSEN = {"object": 2, "cues": ["border contact", "motion"]}


def leaves() -> np.ndarray:
    """Columns of the grid: six leaves, moved by one from frame to frame."""
    return np.stack([np.tile((np.arange(6) + t) % 6, (4, 1)) for t in range(FRAMES)])


def make_segmentation(folder: Path, *, attention: bool = True) -> Path:
    """A result whose published labels are pairs of leaves, and joined two by two in its tree."""
    joins = torch.tensor([[0, 1], [2, 3], [4, 5], [0, 2], [0, 4]])
    tree = joined(6, joins, torch.tensor([0.1, 0.2, 0.3, 0.8, 0.9], dtype=torch.float64))
    found = Segmentation(SIZE, leaves() // 2, leaves(), tree)
    Run(folder, {"verb": "segment", "command": ["unspool", "segment", "my clip.mp4"]}).begin()
    job = SegmentJob("clip", "my clip.mp4", folder, SegmentSettings(), {})
    writer = AttentionWriter(folder / "data" / "clip.tree", 2)
    times = [Fraction(t, 10) for t in range(FRAMES)]
    with VideoResult(folder, "clip", source="my clip.mp4", height=32, width=48, times=times) as result:
        for t, labels in enumerate(found.masks()):
            result.write(np.full((*SIZE, 3), 40 * t, np.uint8), labels)
        if attention:
            writer(key_frames())
        write_hierarchy(result.home / "hierarchy.npz", found, range(FRAMES), 1.0)
        tree, how = write_tree(writer.home, found), Segmenting(Clustering())
        facts = for_page(job, found, tree, writer.shown, how, CHOSEN)
        result.finish(seconds=1.0, page={"segments": facts})
    return write_page(folder)


def key_frames() -> KeyFrames:
    made = torch.Generator().manual_seed(0)
    shape = (2, HEADS, GRID[0] * GRID[1], CHANNELS)
    queries, keys = (2 * torch.randn(shape, generator=made) for _ in range(2))
    return KeyFrames((0, 2), GRID, queries, keys)


def attention(patch: int, query_frame: int, key_frame: int) -> np.ndarray:
    """A of a patch, in full precision."""
    held = key_frames()
    q, k = held.queries[query_frame][:, patch], held.keys.transpose(0, 1).flatten(1, 2)
    rows = torch.softmax(torch.einsum("hc,hnc->hn", q, k) * CHANNELS**-0.5, dim=-1).mean(0)
    return rows.view(2, -1)[key_frame].numpy()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_segmentation(tmp_path_factory.mktemp("segments"))


@pytest.fixture
def browser(chromium: Browser, page: Path) -> Iterator[Browser]:  # noqa: F811
    chromium.open(page)
    chromium.until("s.painted === 0 && s.segments?.ready")
    yield chromium
    assert chromium.errors() == []


def drawn(browser: Browser) -> np.ndarray:
    """Ids on the screen, on the grid."""
    ids = browser.run("return [...unspool.painters[0].prediction]")
    return np.array(ids).reshape(SIZE)[PATCH // 2 :: PATCH, PATCH // 2 :: PATCH]


def slide(browser: Browser, value: int) -> None:
    browser.run(
        "const s = document.getElementById('granularity'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input'))",
        value,
    )


def click(browser: Browser, x: float, y: float) -> None:
    """A real click in the picture, at a share of its width and height."""
    browser.run(
        "const f = document.getElementById('frame'), b = f.getBoundingClientRect();"
        "f.dispatchEvent(new MouseEvent('click', {clientX: b.left + arguments[0] * b.width,"
        "clientY: b.top + arguments[1] * b.height, bubbles: true}))",
        x,
        y,
    )


def shown(browser: Browser, element: str) -> str:
    """The words of an element, as far as they are on the screen."""
    return str(browser.run("return document.getElementById(arguments[0]).innerText", element))


def tool(browser: Browser, name: str) -> None:
    browser.run(f"document.querySelector('[data-tool={name}]').click()")


def png(browser: Browser) -> bytes:
    browser.driver.set_script_timeout(10)
    text = browser.driver.execute_async_script(
        "const done = arguments[0];"
        "unspool.cutting.png().then((bytes) => done(btoa(String.fromCharCode(...bytes))))"
    )
    return base64.b64decode(text)


def keep(browser: Browser, name: str, *places: tuple[float, float]) -> None:
    tool(browser, "choose")
    for x, y in places:
        click(browser, x, y)
    browser.run("document.getElementById('object-name').value = arguments[0]", name)
    browser.run("document.getElementById('keep').click()")


# ------------------------------------------------------------------------------------- first mask


def test_the_object_that_stands_out_is_suggested_as_a_first_mask(browser: Browser) -> None:
    slide(browser, 700)
    assert "Object 2 stands out (border contact, motion)" in shown(browser, "suggestion")
    browser.run("document.getElementById('take-suggestion').click()")
    state = browser.run("return unspool.state().segments")
    assert (state["chosen"], state["tool"], state["clusters"]) == ([2], "choose", None)
    browser.run("document.getElementById('keep').click()")
    assert "--objects 2" in shown(browser, "track-lines")


def test_the_suggestion_goes_to_a_frame_that_shows_it_in_a_video_of_any_length(browser: Browser) -> None:
    browser.run("unspool.cutting.suggested = { id: 2, area: Array(200000).fill(0).fill(9, 3).fill(4, 2, 3) }")
    browser.run("unspool.cutting.suggest()")
    browser.until("s.position === 3")


# ------------------------------------------------------------------------------------------ the cut


def test_published_labels_are_the_default_view(browser: Browser) -> None:
    assert browser.state()["segments"]["clusters"] is None
    assert np.array_equal(drawn(browser), leaves()[0] // 2 + 1)


def test_the_words_of_the_page_are_explained_on_it(browser: Browser) -> None:
    said = browser.run("return document.getElementById('cut-help').textContent")
    for word in ("Published", "tau", "Attention", "slider"):
        assert word in said
    assert browser.run(
        "return [...document.querySelectorAll('#cutting button[data-tool]')].every((b) => b.title)"
    )


@pytest.mark.parametrize(("value", "clusters"), [(0, 6), (1000, 1), (390, 3)])
def test_the_slider_cuts_the_tree_live(browser: Browser, value: int, clusters: int) -> None:
    slide(browser, value)
    browser.until("s.painted === 0")
    assert browser.state()["segments"]["clusters"] == clusters
    assert len(np.unique(drawn(browser))) == clusters


def test_the_slider_shows_what_the_file_says(browser: Browser, page: Path) -> None:
    held = read_hierarchy(page.parent / "videos" / "clip" / "hierarchy.npz")
    for clusters in (1, 2, 3, 4, 5, 6):
        browser.run("unspool.cutting.cut(arguments[0])", clusters)
        browser.until("s.painted === 0")
        assert np.array_equal(drawn(browser), held.ids(clusters)[0])


def test_a_cut_is_kept_from_frame_to_frame_and_published_undoes_it(browser: Browser) -> None:
    slide(browser, 0)
    browser.run("unspool.goTo(2)")
    browser.until("s.painted === 2")
    assert np.array_equal(drawn(browser), leaves()[2] + 1)
    browser.run("document.getElementById('published').click()")
    browser.until("s.painted === 2")
    assert np.array_equal(drawn(browser), leaves()[2] // 2 + 1)


def test_objects_of_a_cut_switch_off_and_on(browser: Browser) -> None:
    slide(browser, 0)
    browser.until("s.painted === 0")
    assert browser.pixel(4, 4)[3] > 0
    browser.run("document.querySelector('#cut-chips [data-id=\"1\"]').click()")
    assert browser.pixel(4, 4)[3] == 0
    browser.run("document.querySelector('#cut-chips [data-id=\"1\"]').click()")
    assert browser.pixel(4, 4)[3] > 0


# ----------------------------------------------------------------------------------- where it attends


@pytest.mark.parametrize(("frame", "place"), [(0, 0), (2, 1)])
def test_a_click_on_a_patch_of_a_key_frame_shows_where_it_attends(
    browser: Browser, frame: int, place: int
) -> None:
    browser.run(f"unspool.goTo({frame})")
    browser.until(f"s.painted === {frame}")
    tool(browser, "attend")
    click(browser, 2.5 / 6, 1.5 / 4)
    browser.until("s.segments.attended?.peak > 0")
    expected = attention(1 * 6 + 2, place, place)
    found = browser.run("return [...unspool.cutting.heat.values]")
    assert np.abs(np.array(found) - expected).max() < 0.05 * expected.max()
    assert browser.state()["segments"]["attended"]["patch"] == 8


def test_another_key_frame_shows_the_attention_of_the_same_patch(browser: Browser) -> None:
    tool(browser, "attend")
    click(browser, 2.5 / 6, 1.5 / 4)
    browser.until("s.segments.attended?.peak > 0")
    browser.run("unspool.goTo(2)")
    browser.until("s.painted === 2 && s.segments.attended?.peak > 0")
    expected = attention(8, 0, 1)
    found = browser.run("return [...unspool.cutting.heat.values]")
    assert np.abs(np.array(found) - expected).max() < 0.1 * expected.max()


def test_a_frame_without_queries_says_where_the_nearest_is(browser: Browser) -> None:
    browser.run("unspool.goTo(3)")
    browser.until("s.painted === 3")
    tool(browser, "attend")
    assert "nearest is 2" in browser.run("return document.getElementById('cut-note').textContent")


def test_attention_is_off_with_a_reason_where_it_is_absent(
    chromium: Browser,  # noqa: F811
    tmp_path: Path,
) -> None:
    chromium.open(make_segmentation(tmp_path, attention=False))
    chromium.until("s.painted === 0 && s.segments?.ready")
    tool(chromium, "attend")
    assert "cannot be shown" in chromium.run("return document.getElementById('cut-note').textContent")


# ------------------------------------------------------------------------------------ saved masks


def test_chosen_objects_are_merged_named_and_saved_as_an_indexed_png(
    browser: Browser, tmp_path: Path
) -> None:
    keep(browser, "Käfer", (0.05, 0.5), (0.95, 0.5))
    keep(browser, "ground", (0.5, 0.5))
    (tmp_path / "m.png").write_bytes(png(browser))
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        assert image.text["Comment"] == "1 Käfer\n2 ground"  # type: ignore[attr-defined]
        assert image.getpalette() == davis_palette().ravel().tolist()
    mask = read_mask(tmp_path / "m.png")
    assert mask.ids == (1, 2)
    assert np.array_equal(mask.labels[0, ::PATCH], [1, 1, 2, 2, 1, 1])


def test_the_saved_mask_is_what_tracking_from_the_result_starts_with(
    browser: Browser, page: Path, tmp_path: Path
) -> None:
    browser.run("unspool.cutting.cut(5)")
    browser.until("s.painted === 0")
    keep(browser, "", (0.05, 0.5))
    keep(browser, "", (0.5, 0.5), (0.95, 0.5))
    (tmp_path / "m.png").write_bytes(png(browser))
    line = browser.run("return unspool.cutting.lines()[0]")
    assert line.endswith("--cut 5 --objects 1,3+6")
    chosen = Chosen(page.parent, "clip", ((1,), (3, 6)), 5)
    assert np.array_equal(chosen.masks()[0].labels, read_truth(tmp_path / "m.png"))


def test_the_command_to_copy_quotes_names_and_names_the_mask(browser: Browser) -> None:
    keep(browser, "a", (0.05, 0.5))
    browser.run("unspool.goTo(3)")
    browser.until("s.painted === 3")
    lines: Any = browser.run(
        "return [...document.querySelectorAll('#track-lines code')].map(c => c.textContent)"
    )
    assert lines[0].startswith("unspool track 'my clip.mp4' --from ")
    assert lines[0].endswith(" --objects 1")
    assert lines[1] == "unspool track 'my clip.mp4' --mask 3:clip-00003.png"


def test_typing_a_name_does_not_move_the_player(browser: Browser) -> None:
    tool(browser, "choose")
    click(browser, 0.05, 0.5)
    browser.run("document.getElementById('object-name').focus()")
    browser.press("f", "t", "ArrowRight")
    assert browser.state()["position"] == 0


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_scrolls_sideways(chromium: Browser, page: Path, width: int) -> None:  # noqa: F811
    chromium.open(page, width=width)
    chromium.until("s.painted === 0 && s.segments?.ready")
    keep(chromium, "a rather long name of an object", (0.05, 0.5))
    assert chromium.run("return document.documentElement.scrollWidth <= innerWidth")
