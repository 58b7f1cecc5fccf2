"""Exports, read by the programs that they are for; each test is left out where its program is not installed.

Run them with `pytest -m consumers`; CONTRIBUTING.md says what to install.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_export import FRAMES, HEIGHT, WIDTH, image_of, labels_of, two_videos

from unspool.export import Export, export
from unspool.protocols.tracking import score_sequence

pytestmark = pytest.mark.consumers

SHIFT = 3  # px between the truth and the worse result


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_videos(tmp_path_factory.mktemp("truth"))


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_videos(tmp_path_factory.mktemp("shifted"), shift=SHIFT)


# --------------------------------------------------------------------------- annotation: CVAT's library


def test_cvats_library_reads_mots_as_tracks(result: Path, tmp_path: Path) -> None:
    datumaro = pytest.importorskip("datumaro")
    out = export(Export(result, "mots"), tmp_path / "out")
    with zipfile.ZipFile(out / "clip.zip") as archive:
        archive.extractall(tmp_path / "clip")
    data = datumaro.Dataset.import_from(str(tmp_path / "clip"), "mots")
    assert [item.id for item in data] == [f"frame_{t:06d}" for t in range(FRAMES)]
    names = data.categories()[datumaro.AnnotationType.label]
    for t, item in enumerate(data):
        found = {int(mask.attributes["track_id"]): mask for mask in item.annotations}
        assert {names[mask.label].name for mask in found.values()} == {"object"}
        assert set(found) == set(np.unique(labels_of(t))) - {0}
        for label, mask in found.items():
            assert np.array_equal(mask.image, labels_of(t) == label)


def test_cvats_library_reads_coco(result: Path, tmp_path: Path) -> None:
    datumaro = pytest.importorskip("datumaro")
    out = export(Export(result, "coco"), tmp_path / "out")
    (out / "images").mkdir()  # where the pictures would lie; this reader refuses a tree without it
    data = datumaro.Dataset.import_from(str(out), "coco")
    items = {item.id: item for item in data}
    assert set(items) == {f"clip/{t:05d}" for t in range(FRAMES)} | {
        f"stills/{5 * t:05d}" for t in range(FRAMES)
    }
    for t in range(FRAMES):
        kept = [a for a in items[f"stills/{5 * t:05d}"].annotations if a.type is datumaro.AnnotationType.mask]
        found = {a.attributes["track_id"]: a.image for a in kept}
        assert set(found) == set(np.unique(labels_of(t))) - {0}
        assert all(np.array_equal(image, labels_of(t) == label) for label, image in found.items())


# ------------------------------------------------------------------------------------ scores: TrackEval


def hota(data: Any, sequence: str, group: str) -> float:
    """Mean HOTA of TrackEval's only tracker on a sequence."""
    from trackeval.metrics import HOTA

    (tracker,) = data.tracker_list
    raw = data.get_raw_seq_data(tracker, sequence)
    scores = HOTA().eval_sequence(data.get_preprocessed_seq_data(raw, group))
    return float(scores["HOTA"].mean())


def kitti_mots(truth: Path, tracked: Path, home: Path) -> float:
    from trackeval.datasets import KittiMOTS

    shutil.copytree(export(Export(truth, "mots"), home / "a"), home / "gt" / "label_02")
    shutil.copytree(export(Export(tracked, "mots"), home / "b"), home / "trackers" / "ours" / "data")
    places = {"GT_FOLDER": str(home / "gt"), "TRACKERS_FOLDER": str(home / "trackers")}
    which = {"SEQ_INFO": {"clip": FRAMES}, "CLASSES_TO_EVAL": ["car"], "PRINT_CONFIG": False}
    return hota(KittiMOTS({**places, **which}), "clip", "car")


def youtube_vis(truth: Path, tracked: Path, home: Path) -> float:
    from trackeval.datasets import YouTubeVIS

    (home / "gt" / "youtube_vis_val").mkdir(parents=True)
    ours = home / "trackers" / "youtube_vis_val" / "ours" / "data"
    ours.mkdir(parents=True)
    shutil.copy(
        export(Export(truth, "ytvis"), home / "a") / "instances.json", home / "gt" / "youtube_vis_val"
    )
    shutil.copy(export(Export(tracked, "ytvis"), home / "b") / "results.json", ours)
    places = {"GT_FOLDER": f"{home / 'gt'}/", "TRACKERS_FOLDER": f"{home / 'trackers'}/"}
    data = YouTubeVIS({**places, "SPLIT_TO_EVAL": "val", "PRINT_CONFIG": False})
    return hota(data, "stills", "object")


def davis(truth: Path, tracked: Path, home: Path) -> float:
    from trackeval.datasets import DAVIS

    truths = export(Export(truth, "davis"), home / "gt")
    export(Export(tracked, "davis"), home / "trackers" / "ours" / "data")
    places = {"GT_FOLDER": str(truths), "TRACKERS_FOLDER": str(home / "trackers")}
    data = DAVIS({**places, "SEQ_INFO": {"stills": FRAMES}, "PRINT_CONFIG": False})
    return hota(data, "stills", "general")


@pytest.mark.parametrize("score", [kitti_mots, youtube_vis, davis])
def test_trackeval_scores_the_truth_as_perfect_and_a_shifted_result_as_worse(
    score: Any, result: Path, shifted: Path, tmp_path: Path
) -> None:
    pytest.importorskip("trackeval")
    assert score(result, result, tmp_path / "same") == pytest.approx(1)
    assert 0.3 < score(result, shifted, tmp_path / "worse") < 0.95


def test_vos_benchmark_scores_an_export_as_our_vos_late_does(
    result: Path, shifted: Path, tmp_path: Path
) -> None:
    theirs = pytest.importorskip("vos_benchmark.benchmark")
    truth = export(Export(result, "davis"), tmp_path / "truth")
    ours = export(Export(shifted, "davis"), tmp_path / "ours")
    for video in ("clip", "stills"):
        _, region, boundary = theirs.VideoEvaluator(str(truth), str(ours))(video)
        files = (sorted((root / video).iterdir()) for root in (ours, truth))
        objects = score_sequence(video, *files, "vos-late").objects
        assert list(region) == list(boundary) == list(objects.ids) == [1, 7]
        for label, (j, f) in zip(objects.ids, objects.statistics(), strict=True):
            assert (100 * j.mean, 100 * f.mean) == pytest.approx((region[label], boundary[label]))


# ---------------------------------------------------------------------------- prompts: SAM 2 and Cutie


@pytest.fixture
def jpegs(tmp_path: Path) -> Path:
    """The folder of frames as these two read it."""
    folder = tmp_path / "JPEGImages" / "stills"
    folder.mkdir(parents=True)
    for t in range(FRAMES):
        Image.fromarray(image_of(t)).save(folder / f"{5 * t:05d}.jpg")
    return folder


@pytest.fixture(scope="module")
def predictor() -> Any:
    """SAM 2's video predictor with random weights, at 256 px."""
    return pytest.importorskip("sam2.build_sam").build_sam2_video_predictor(
        "configs/sam2.1/sam2.1_hiera_t.yaml",
        device="cpu",
        apply_postprocessing=False,
        hydra_overrides_extra=["++model.image_size=256", "++model.non_overlap_masks=true"],
    )


def at_256(mask: np.ndarray) -> torch.Tensor:
    grid = torch.from_numpy(mask)[None, None].float()
    size = {"size": (256, 256), "mode": "bilinear", "antialias": True}
    return torch.nn.functional.interpolate(grid, **size) >= 0.5


def test_sam2_holds_our_masks(predictor: Any, result: Path, jpegs: Path, tmp_path: Path) -> None:
    """Given as its tools/vos_inference.py --use_all_masks gives them."""
    masks = export(Export(result, "prompts", ("stills",)), tmp_path / "out") / "Annotations" / "stills"
    state = predictor.init_state(str(jpegs))
    names = sorted((path.stem for path in jpegs.iterdir()), key=int)
    for frame, path in enumerate(masks / f"{name}.png" for name in names):
        if path.exists():
            labels = np.array(Image.open(path)).astype(np.uint8)
            for label in np.unique(labels[labels > 0]).tolist():
                predictor.add_new_mask(state, frame_idx=frame, obj_id=label, mask=labels == label)
    assert state["obj_ids"] == [1, 7]
    for place, (label, frame) in enumerate([(1, 0), (7, 2)]):
        held = state["mask_inputs_per_obj"][place][frame]
        assert torch.equal(held, at_256(labels_of(frame) == label).float())
    with torch.autocast("cpu", torch.bfloat16):  # as its own programs run it
        carried = predictor.propagate_in_video(state, max_frame_num_to_track=2)
        assert [(frame, list(ids)) for frame, ids, _ in carried] == [(t, [1, 7]) for t in range(3)]


def test_sam2_places_our_boxes_and_points_on_the_objects(
    predictor: Any, result: Path, jpegs: Path, tmp_path: Path
) -> None:
    out = export(Export(result, "prompts", ("stills",)), tmp_path / "out")
    prompts = json.loads((out / "prompts" / "stills.json").read_text("utf-8"))["prompts"]
    state = predictor.init_state(str(jpegs))
    for place, prompt in enumerate(prompts):
        frame, label = prompt["frame"], prompt["object"]
        given = {"points": [prompt["point"]], "labels": [1], "box": prompt["box"]}
        predictor.add_new_points_or_box(state, frame_idx=frame, obj_id=label, **given)
        held = state["point_inputs_per_obj"][place][frame]["point_coords"][0].round().long()
        mask = at_256(labels_of(frame) == label)[0, 0]
        rows, columns = mask.nonzero(as_tuple=True)
        corners = torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        assert (held[:2].flatten() - corners).abs().max() <= 1
        assert mask[held[2, 1], held[2, 0]]


def test_cutie_takes_the_first_masks(result: Path, jpegs: Path, tmp_path: Path) -> None:
    theirs = pytest.importorskip("cutie.inference.data.vos_test_dataset")
    out = export(Export(result, "prompts", ("stills",)), tmp_path / "out")
    data = theirs.VOSTestDataset(str(jpegs.parent), str(out / "Annotations"), use_all_masks=True)
    (video,) = data.get_datasets()
    given = {
        t: (item["valid_labels"].tolist(), item["mask"]) for t, item in enumerate(video) if "mask" in item
    }
    assert {t: labels for t, (labels, _) in given.items()} == {0: [1], 2: [7]}
    for t, (labels, mask) in given.items():
        assert np.array_equal(mask == labels[0], labels_of(t) == labels[0])
    assert video.frames == sorted(path.name for path in jpegs.iterdir())
    assert tuple(video[0]["info"]["shape"]) == (HEIGHT, WIDTH)
