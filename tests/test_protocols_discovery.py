"""The names under which segmentations are scored: each is its metric, and nothing else."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unspool import metrics
from unspool.errors import DataError, ShapeError, UsageError
from unspool.masks import write_mask
from unspool.protocols.discovery import (
    FOREGROUNDS,
    MANY,
    PROTOCOLS,
    QUIRKS,
    SINGLE,
    SPARSE,
    Prediction,
    Row,
    measured_of,
    rows_of,
    score_csv,
    score_table,
    score_video,
    sentences,
    without_black_borders,
)

FRAMES, HEIGHT, WIDTH = 5, 18, 24
RNG = np.random.default_rng(3)


def blocks(ids: int, void: bool = False) -> np.ndarray:
    """[T, H, W] of random blocks of 6x6 px; with void, one corner of it."""
    labels = RNG.integers(0, ids, (FRAMES, HEIGHT // 6, WIDTH // 6)).repeat(6, 1).repeat(6, 2)
    if void:
        labels[:, :3, :3] = 255
    return labels.astype(np.uint8)


TRUTH, OTHER_TRUTH = blocks(4, void=True), blocks(3)
PREDICTED, OTHER_PREDICTED = blocks(6), blocks(5)


def written(folder: Path, labels: np.ndarray) -> Prediction:
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{t:05d}.png" for t in range(len(labels)))
    for path, frame in zip(paths, labels, strict=True):
        write_mask(path, frame)
    return Prediction(paths)


def measured(tmp_path: Path, name: str, foreground: str = "", **more: bool) -> object:
    row = Row(name, foreground)
    record = score_video("a", written(tmp_path / "a", PREDICTED), lambda: iter(TRUTH), [row], **more)
    return measured_of("a", json.loads(json.dumps(record))["rows"][row.label])


PLAIN = [name for name, protocol in PROTOCOLS.items() if not protocol.foreground]
FUNCTIONS = {name: getattr(metrics, name.replace("-", "_")) for name in PLAIN}


def test_every_name_of_the_specification_is_there() -> None:
    assert list(PROTOCOLS) == [
        "davis17-unsup", "davis17-unsup-framewise", "fg-ari-video", "fg-ari-frame", "fg-ari-solv",
        "miou-solv", "fg-ari-solv-quirks", "miou-solv-quirks", "miou-video-hungarian",
        "miou-frame", "mbo-video", "mbo-frame",
        "davis16-official", "davis16-allframes", "davis16-pooled", "segtrack-fbms",
        "single-object-oracle-frame", "single-object-oracle-video", "single-object-label-free",
        "single-object-label-free-cues",
    ]  # fmt: skip
    assert set(MANY) | set(SINGLE) | set(SPARSE) | set(QUIRKS) == set(PROTOCOLS)
    assert not set(QUIRKS) & set(MANY)


@pytest.mark.parametrize("name", [name for name in PLAIN if name.startswith(("davis", "single"))])
def test_j_and_f_are_those_of_the_metric_of_that_name(tmp_path: Path, name: str) -> None:
    found, direct = measured(tmp_path, name), FUNCTIONS[name](PREDICTED, TRUTH)
    assert isinstance(found, metrics.ObjectScores)
    assert (found.ids, found.frames) == (direct.ids, direct.frames)
    np.testing.assert_array_equal(found.j, direct.j)
    np.testing.assert_array_equal(found.f, direct.f)


@pytest.mark.parametrize("name", [name for name in PLAIN if name.startswith(("miou", "mbo"))])
def test_overlaps_are_those_of_the_metric_of_that_name(tmp_path: Path, name: str) -> None:
    found, direct = measured(tmp_path, name), FUNCTIONS[name](PREDICTED, TRUTH)
    assert isinstance(found, metrics.ObjectOverlaps)
    assert found.ids == direct.ids
    np.testing.assert_array_equal(found.iou, direct.iou)


@pytest.mark.parametrize("name", [name for name in PLAIN if name.startswith("fg-ari")])
def test_ari_is_that_of_the_metric_of_that_name(tmp_path: Path, name: str) -> None:
    assert measured(tmp_path, name) == FUNCTIONS[name](PREDICTED, TRUTH)


def mean_j(name: str, videos: dict[str, tuple[np.ndarray, np.ndarray]], tmp_path: Path) -> float:
    (row,) = rows_of([name], ["given"])
    records = {
        video: score_video(video, written(tmp_path / video, predicted), truth.__iter__, [row])
        for video, (predicted, truth) in videos.items()
    }
    table = score_table(records, [row], postprocessing="none")
    value: float = table["protocols"][name]["global"][PROTOCOLS[name].headline]
    return value


def j(predicted: np.ndarray, truth: np.ndarray) -> float:
    union = np.count_nonzero((predicted > 0) | (truth > 0))
    return np.count_nonzero((predicted > 0) & (truth > 0)) / union if union else 1.0


def test_sets_are_averaged_as_each_name_says(tmp_path: Path) -> None:
    videos = {"a": (PREDICTED, TRUTH), "b": (OTHER_PREDICTED[:3], OTHER_TRUTH[:3])}
    rows = {v: [j(p, t) for p, t in zip(*maps, strict=True)] for v, maps in videos.items()}
    everything = np.concatenate(list(rows.values()))
    for name, expected in (
        ("davis16-official", np.mean([np.mean(row[1:-1]) for row in rows.values()])),
        ("davis16-allframes", np.mean([np.mean(row) for row in rows.values()])),
        ("segtrack-fbms", np.mean([np.mean(row) for row in rows.values()])),
        ("davis16-pooled", everything.mean()),
    ):
        assert mean_j(name, videos, tmp_path) == pytest.approx(expected, abs=1e-6)
    overlaps = [metrics.miou_solv(*maps) for maps in videos.values()]
    assert mean_j("miou-solv", videos, tmp_path) == pytest.approx(
        metrics.mean_over_objects(overlaps), abs=1e-6
    )
    aris = [metrics.fg_ari_frame(*maps) for maps in videos.values()]
    assert mean_j("fg-ari-frame", videos, tmp_path) == pytest.approx(np.mean(aris), abs=1e-6)


def test_a_perfect_segmentation_scores_one_everywhere(tmp_path: Path) -> None:
    truth = np.zeros((FRAMES, HEIGHT, WIDTH), np.uint8)
    for t in range(FRAMES):
        truth[t, 4:12, 4 + t : 12 + t] = 1
    rows = rows_of(list(PROTOCOLS), FOREGROUNDS)
    prediction = replace(written(tmp_path / "a", truth + 1), by_cues=2)
    record = score_video("a", prediction, lambda: iter(truth), rows)
    table = score_table({"a": record}, rows, postprocessing="none")
    assert set(table["global"].values()) == {1.0}


# ---------------------------------------------------------------------------------- choosing a foreground


def test_foregrounds_are_reported_apart_and_the_row_says_whose_choice_it_is() -> None:
    rows = rows_of(["davis16-official", "single-object-label-free", "fg-ari-video"], FOREGROUNDS)
    assert [row.label for row in rows] == [
        "davis16-official, label-free", "davis16-official, label-free-cues",
        "davis16-official, oracle-frame", "davis16-official, oracle-video",
        "single-object-label-free", "fg-ari-video",
    ]  # fmt: skip


@pytest.mark.parametrize("when", ["frame", "video"])
def test_a_foreground_chosen_by_truth_scores_as_the_oracle_of_that_name(tmp_path: Path, when: str) -> None:
    chosen = measured(tmp_path, "davis16-allframes", f"oracle-{when}")
    oracle = measured(tmp_path, f"single-object-oracle-{when}")
    assert isinstance(chosen, metrics.ObjectScores) and isinstance(oracle, metrics.ObjectScores)
    np.testing.assert_array_equal(chosen.j, oracle.j)
    np.testing.assert_array_equal(chosen.f, oracle.f)


def test_the_label_free_choice_does_not_look_at_truth(tmp_path: Path) -> None:
    predicted = np.ones((FRAMES, HEIGHT, WIDTH), np.uint8)
    predicted[:, 6:12, 6:12] = 2  # stands free, and is not what truth says
    truth = (predicted == 1).astype(np.uint8)
    rows = rows_of(["single-object-label-free", "single-object-oracle-video"], FOREGROUNDS)
    record = score_video("a", written(tmp_path / "a", predicted), lambda: iter(truth), rows)
    table = score_table({"a": record}, rows, postprocessing="none")
    assert table["protocols"]["single-object-label-free"]["global"]["J-Mean"] == 0.0
    assert table["protocols"]["single-object-oracle-video"]["global"]["J-Mean"] == 1.0


def test_the_choice_by_all_cues_is_that_of_the_segmentation(tmp_path: Path) -> None:
    row = Row("single-object-label-free-cues", "label-free-cues")
    prediction = replace(written(tmp_path / "a", TRUTH * (TRUTH != 255)), by_cues=2)
    record = score_video("a", prediction, lambda: iter((TRUTH == 2).astype(np.uint8)), [row])
    table = score_table({"a": record}, [row], postprocessing="none")
    assert table["protocols"][row.label]["global"]["J-Mean"] == 1.0
    with pytest.raises(DataError, match="neither motion nor attention"):
        measured(tmp_path, row.protocol, row.foreground)


# -------------------------------------------------------------------------------------------- odd truth


@pytest.mark.parametrize("name", [*PLAIN, "segtrack-fbms"])
def test_frames_without_truth_are_not_scored(tmp_path: Path, name: str) -> None:
    sparse = [TRUTH[0], None, None, TRUTH[3], None]
    row = Row(name, "given" if PROTOCOLS[name].foreground else "")
    prediction = written(tmp_path / "a", PREDICTED)
    record = score_video("a", prediction, lambda: iter(sparse), [row])
    dense = score_video("a", written(tmp_path / "b", PREDICTED[[0, 3]]), lambda: iter(TRUTH[[0, 3]]), [row])
    assert record["truth"]["annotated"] == [0, 3]
    assert record["truth"]["frames"] == FRAMES
    own, other = record["rows"][name], dense["rows"][name]
    assert own.pop("frames", [0, 3]) == [0, 3]
    other.pop("frames", None)
    assert own == other


def test_too_many_proposals_are_an_error_or_the_largest_by_name(tmp_path: Path) -> None:
    many = np.arange(HEIGHT * WIDTH).reshape(1, HEIGHT, WIDTH).repeat(FRAMES, 0) // 12 + 1  # 36 ids
    many[:, :9] = 40
    prediction = written(tmp_path / "a", many.astype(np.uint8))
    rows = [Row("davis17-unsup")]
    with pytest.raises(DataError, match=r"a: frame 0 holds proposal 40, the protocol allows 20"):
        score_video("a", prediction, lambda: iter(OTHER_TRUTH), rows)
    record = score_video("a", prediction, lambda: iter(OTHER_TRUTH), rows, fewer=True)
    assert record["rows"]["davis17-unsup"]["proposals"] == "the 20 largest"
    table = score_table({"a": record}, rows, postprocessing="none")
    assert "(the 20 largest proposals in 1 of 1 videos)" in sentences(table)


def test_only_rows_that_crop_black_borders_score_without_them(tmp_path: Path) -> None:
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame[3:-2, 5:-1] = 9
    inside = without_black_borders(frame)
    prediction = Prediction(written(tmp_path / "a", PREDICTED).paths, inside)
    rows = [Row("miou-solv-quirks"), Row("miou-solv")]
    found = score_video("a", prediction, lambda: iter(TRUTH), rows)["rows"]
    cut = metrics.miou_solv_quirks(PREDICTED[:, 3:-2, 5:-1], TRUTH[:, 3:-2, 5:-1])
    assert found["miou-solv-quirks"]["iou"] == cut.iou.tolist()
    assert found["miou-solv"]["iou"] == metrics.miou_solv(PREDICTED, TRUTH).iou.tolist()


def test_a_black_frame_has_no_borders() -> None:
    assert np.zeros((4, 5))[without_black_borders(np.zeros((4, 5, 3), np.uint8))].shape == (4, 5)


def test_a_video_without_truth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a: no frame of it has truth"):
        score_video(
            "a", written(tmp_path / "a", PREDICTED), lambda: iter([None] * FRAMES), [Row("miou-solv")]
        )


def test_truth_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="a: prediction has 5 frames, truth 4"):
        score_video("a", written(tmp_path / "a", PREDICTED), lambda: iter(TRUTH[:4]), [Row("miou-solv")])


def test_truth_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="a: frame 0: prediction is 18x24, truth is 18x12"):
        score_video(
            "a", written(tmp_path / "a", PREDICTED), lambda: iter(TRUTH[:, :, :12]), [Row("mbo-frame")]
        )


def test_a_video_without_objects_counts_nowhere(tmp_path: Path) -> None:
    row = Row("fg-ari-video")
    empty = np.zeros_like(TRUTH)
    records = {
        "a": score_video("a", written(tmp_path / "a", PREDICTED), lambda: iter(TRUTH), [row]),
        "b": score_video("b", written(tmp_path / "b", PREDICTED), lambda: iter(empty), [row]),
    }
    assert records["b"]["rows"]["fg-ari-video"] == {"value": None}
    table = score_table(records, [row], postprocessing="none")
    assert table["protocols"]["fg-ari-video"]["videos"]["b"]["FG-ARI"] is None
    assert table["global"]["fg-ari-video FG-ARI"] == table["sequences"]["a"]["fg-ari-video FG-ARI"]


def test_an_unknown_name_lists_those_that_there_are() -> None:
    with pytest.raises(UsageError, match=r"protocol 'mIoU' is unknown; there are davis17-unsup, "):
        rows_of(["mIoU"], FOREGROUNDS)


# ---------------------------------------------------------------------------------------------- tables


def test_the_table_says_what_was_scored_and_how(tmp_path: Path) -> None:
    rows = rows_of(["davis17-unsup", "davis16-pooled"], ["given"])
    record = score_video("a", written(tmp_path / "a", PREDICTED), lambda: iter(TRUTH), rows)
    table = score_table({"a": record}, rows, postprocessing="20 largest", missing=["b"])
    assert table["data"] == {
        "videos": 1, "frames": 5, "annotated frames": 5, "objects": 3, "sizes": ["24x18"],
    }  # fmt: skip
    assert table["postprocessing"] == "20 largest"
    first, *lines, last = sentences(table).splitlines()
    assert first == (
        "data: videos 1, frames 5, with truth 5, objects 3, sizes 24x18; post-processing: 20 largest"
    )
    assert [line.split(":")[0] for line in lines] == ["davis17-unsup", "davis16-pooled"]
    assert last == "over 1 of 2 videos, without b"
    assert score_csv(table).splitlines()[0] == "protocol,foreground,video,measure,value"
    assert len(score_csv(table).splitlines()) == 1 + 2 * 2 * 7


def test_numbers_that_do_not_exist_survive_the_record() -> None:
    assert math.isnan(measured_of("a", {"value": None}))  # type: ignore[arg-type]
