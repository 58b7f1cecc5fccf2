"""Exports, read back through the libraries of those who will read them."""

import json
import shutil
import subprocess
import sys
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from safetensors import safe_open

from unspool.cli import main
from unspool.encoders import load_encoder
from unspool.errors import MaskError, UsageError, VideoError
from unspool.export import Export, export
from unspool.export.annotations import run_lengths
from unspool.masks import davis_palette
from unspool.results import Run
from unspool.video import VideoWriter, open_video
from unspool.video_result import VideoResult

HEIGHT, WIDTH, FRAMES = 46, 62, 5
TIMES = [Fraction(1001 * t, 24_000) for t in range(FRAMES)]


def labels_of(t: int, ids: tuple[int, ...] = (1, 7)) -> np.ndarray:
    """The first object moves; the second comes at frame 2 and is gone at frame 4."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8 if max(ids) < 255 else np.uint16)
    labels[5:20, 4 + 3 * t : 20 + 3 * t] = ids[0]
    if 2 <= t < 4:
        labels[25:40, 30:50] = ids[1]
    return labels


def image_of(t: int) -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
    image[labels_of(t) == 1] = (200, 40, 40)
    image[labels_of(t) == 7] = (40, 200, 40)
    return image


def make_result(
    folder: Path, sources: dict[str, Path], ids: tuple[int, ...] = (1, 7), shift: int = 0
) -> Path:
    run = Run(folder, {"verb": "track", "config": {}})
    run.begin()
    for name, source in sources.items():
        size = {"height": HEIGHT, "width": WIDTH, "times": TIMES}
        with VideoResult(folder, name, source=str(source), **size) as result:
            for t in range(FRAMES):
                result.write(image_of(t), np.roll(labels_of(t, ids), shift, axis=1))
            result.finish(seconds=1.0)
    return folder


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_videos(tmp_path_factory.mktemp("export"))


def two_videos(home: Path, shift: int = 0) -> Path:
    """The result of one video file and one folder of frames with names of their own; px to the right."""
    with VideoWriter(home / "clip.mp4", height=HEIGHT, width=WIDTH, times=TIMES, crf=5) as writer:
        for t in range(FRAMES):
            writer.write(image_of(t))
    (home / "stills").mkdir()
    for t in range(FRAMES):
        Image.fromarray(image_of(t)).save(home / "stills" / f"{5 * t:05d}.png")
    return make_result(home / "result", {"clip": home / "clip.mp4", "stills": home / "stills"}, shift=shift)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crowded")
    with pytest.warns(match="above 254"):
        return make_result(folder / "result", {"clip": folder / "clip.mp4"}, ids=(1, 1200))


# ------------------------------------------------------------------------------------------ formats


def test_coco_is_read_by_pycocotools(result: Path, tmp_path: Path) -> None:
    out = export(Export(result, "coco"), tmp_path / "out")
    data = COCO(str(out / "annotations" / "instances_default.json"))
    assert [video["name"] for video in data.dataset["videos"]] == ["clip", "stills"]
    assert len(data.imgs) == 2 * FRAMES
    for image in data.imgs.values():
        expected = labels_of(image["frame_id"])
        found = data.loadAnns(data.getAnnIds(image["id"]))
        assert {a["track_id"] for a in found} == set(np.unique(expected)) - {0}
        for annotation in found:
            mask = expected == annotation["track_id"]
            assert np.array_equal(data.annToMask(annotation), mask)
            assert annotation["area"] == mask.sum()
    assert data.imgs[FRAMES + 2]["file_name"] == "stills/00005.jpg"


def test_ytvis_holds_one_record_per_object_and_null_where_it_is_absent(result: Path, tmp_path: Path) -> None:
    out = export(Export(result, "ytvis"), tmp_path / "out")
    data = json.loads((out / "instances.json").read_text("utf-8"))
    assert [a["id"] for a in data["annotations"]] == [1, 2, 3, 4]
    names = {video["id"]: video["file_names"] for video in data["videos"]}
    assert names[2][:2] == ["stills/00000.jpg", "stills/00005.jpg"]
    results = json.loads((out / "results.json").read_text("utf-8"))
    for annotation, predicted in zip(data["annotations"], results, strict=True):
        assert len(annotation["segmentations"]) == len(names[annotation["video_id"]]) == FRAMES
        assert (predicted["video_id"], predicted["score"]) == (annotation["video_id"], 1.0)
        for t, rle in enumerate(annotation["segmentations"]):
            mask = labels_of(t) == annotation["track_id"]
            assert (rle is None) == (predicted["segmentations"][t] is None) == (not mask.any())
            if rle is not None:
                assert isinstance(rle["counts"], list)  # as published
                plain = coco_mask.frPyObjects(rle, HEIGHT, WIDTH)
                for found in (plain, predicted["segmentations"][t]):
                    assert np.array_equal(coco_mask.decode(found).astype(bool), mask)


def test_run_lengths_are_those_that_pycocotools_packed() -> None:
    random = np.random.default_rng(0)
    for length in range(1, 40):
        counts = random.integers(0, 10 ** random.integers(1, 6), length).tolist()
        size = [1, sum(counts)]
        packed = coco_mask.frPyObjects({"size": size, "counts": counts}, *size)
        assert run_lengths({"counts": packed["counts"].decode("ascii")}) == counts


@pytest.mark.parametrize(("kind", "root"), [("davis", "."), ("youtube-vos", "Annotations")])
def test_submissions_are_palette_pngs_under_the_frames_own_names(
    result: Path, tmp_path: Path, kind: str, root: str
) -> None:
    out = export(Export(result, kind), tmp_path / "out") / root  # type: ignore[arg-type]
    assert sorted(p.name for p in (out / "clip").iterdir()) == [f"{t:05d}.png" for t in range(FRAMES)]
    for t in range(FRAMES):
        with Image.open(out / "stills" / f"{5 * t:05d}.png") as image:
            assert image.mode == "P"
            assert bytes(image.getpalette() or ())[: 3 * 8] == davis_palette()[:8].tobytes()
            assert np.array_equal(np.asarray(image), labels_of(t))


def test_mots_is_16_bits_of_class_and_id_in_a_zip(result: Path, tmp_path: Path) -> None:
    out = export(Export(result, "mots"), tmp_path / "out")
    with zipfile.ZipFile(out / "clip.zip") as archive:
        assert archive.read("train/instances/labels.txt") == b"object\n"
        with archive.open("train/instances/frame_000002.png") as file, Image.open(file) as image:
            coded = np.asarray(image).astype(int)
    classes, instances = np.divmod(coded, 1000)  # as datumaro does
    assert np.array_equal(instances, labels_of(2))
    assert set(np.unique(classes)) == {0, 1}


def test_mots_text_says_the_same(result: Path, tmp_path: Path) -> None:
    lines = (export(Export(result, "mots"), tmp_path / "out") / "clip.txt").read_text("ascii").splitlines()
    assert len(lines) == FRAMES + 2
    for frame, identity, group, height, width, counts in map(str.split, lines):
        mask = coco_mask.decode({"size": [int(height), int(width)], "counts": counts})
        assert group == "1"
        assert np.array_equal(mask.astype(bool), labels_of(int(frame)) == int(identity) - 1000)


def test_prompts_name_each_object_where_it_appears_first(result: Path, tmp_path: Path) -> None:
    out = export(Export(result, "prompts"), tmp_path / "out")
    prompts = json.loads((out / "prompts" / "stills.json").read_text("utf-8"))["prompts"]
    assert [(p["frame"], p["mask"], p["object"]) for p in prompts] == [
        (0, "00000.png", 1),
        (2, "00010.png", 7),
    ]
    assert prompts[1]["box"] == [30, 25, 50, 40]
    for prompt in prompts:
        labels = np.asarray(Image.open(out / "Annotations" / "stills" / prompt["mask"]))
        x, y = prompt["point"]
        assert labels[y, x] == prompt["object"]
        assert set(np.unique(labels)) == {0, prompt["object"]}


def test_mattes_are_the_picture_with_the_object_as_alpha(result: Path, tmp_path: Path) -> None:
    out = export(Export(result, "mattes", videos=("stills",)), tmp_path / "out")
    for t in range(FRAMES):
        with Image.open(out / "stills" / "object-7" / f"{5 * t:05d}.png") as image:
            rgba = np.asarray(image)
        assert image.mode == "RGBA"
        assert np.array_equal(rgba[..., :3], image_of(t))
        assert np.array_equal(rgba[..., 3], 255 * (labels_of(t) == 7))
    assert not (out / "clip").exists()


def test_prores_keeps_alpha_and_the_sources_times(result: Path, tmp_path: Path) -> None:
    out = export(Export(result, "prores", videos=("clip",)), tmp_path / "out") / "clip"
    assert sorted(p.name for p in out.iterdir()) == ["object-1.mov", "object-7.mov"]
    with av.open(str(out / "object-7.mov")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.profile) == ("prores", "4444")
        frames = list(container.decode(stream))
    assert [Fraction(f.pts) * f.time_base for f in frames] == TIMES
    for t, frame in enumerate(frames):
        rgba = frame.to_ndarray(format="rgba")
        assert np.array_equal(rgba[..., 3] > 127, labels_of(t) == 7)
        assert set(np.unique(rgba[..., 3])) <= {0, 255}
        assert abs(rgba[..., :3].astype(int) - image_of(t)).mean() < 8


def test_features_are_a_tensor_per_video_with_their_facts(result: Path, tmp_path: Path) -> None:
    what = Export(result, "features", ("clip",), model="random-resnet18", layer="layer3", resolution=32)
    out = export(what, tmp_path / "out")
    encoder = load_encoder("random-resnet18", device="cpu")
    with safe_open(out / "clip.safetensors", "pt") as file, open_video(_source(result)) as video:
        facts, features = file.metadata(), file.get_tensor("features")
        pixels = torch.from_numpy(video[3]).permute(2, 0, 1)[None].float() / 255
    height, width = map(int, facts["input"].split())
    assert features.shape == (FRAMES, 256, *map(int, facts["grid"].split()))
    assert (facts["layer"], facts["norm"], min(height, width)) == ("layer3", "none", 32)
    assert facts["weights_hash"] == encoder.weights_hash
    pixels = torch.nn.functional.interpolate(pixels, size=(height, width), mode="bilinear")
    with torch.inference_mode():
        expected = encoder(pixels, want=("layer3",))["layer3"][0]
    assert torch.allclose(features[3].float(), expected, rtol=2e-3, atol=2e-3)


def _source(result: Path) -> str:
    return json.loads((result / "videos" / "clip" / "done.json").read_text("utf-8"))["source"]


@pytest.mark.parametrize("model", ["random-vits16", "random-resnet50"])
def test_timm_builds_the_encoder_and_gives_the_same_features(model: str, tmp_path: Path) -> None:
    out = export(Export(Path(), "timm", model=model), tmp_path / "out")
    network = timm.create_model(f"local-dir:{out / 'encoder'}", pretrained=True).eval()
    own = load_encoder(model, device="cpu")
    images = torch.rand(1, 3, 224, 224)
    facts = timm.data.resolve_model_data_config(network)
    mean, std = (torch.tensor(facts[k]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.inference_mode():
        theirs = network.forward_features((images - mean) / std)
        if theirs.ndim == 3:
            theirs = theirs[:, 1:].transpose(1, 2).reshape(1, -1, 14, 14)
        assert torch.allclose(theirs, own(images)["tokens"], atol=1e-4)


def test_a_resnet_that_timm_cannot_build_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no network that timm can build.*torchvision"):
        export(Export(Path(), "timm", model="random-resnet18"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_result_of_every_second_frame_keeps_the_frames_own_names_and_pictures(tmp_path: Path) -> None:
    (tmp_path / "stills").mkdir()
    for t in range(2 * FRAMES):
        Image.fromarray(image_of(t // 2)).save(tmp_path / "stills" / f"{t:05d}.png")
    result = make_result(tmp_path / "result", {"stills": tmp_path / "stills"})
    done = result / "videos" / "stills" / "done.json"
    done.write_text(json.dumps(json.loads(done.read_text("utf-8")) | {"every": 2}))  # as `segment` says it
    masks = export(Export(result, "davis"), tmp_path / "davis") / "stills"
    assert sorted(p.stem for p in masks.iterdir()) == [f"{2 * t:05d}" for t in range(FRAMES)]
    prompts = export(Export(result, "prompts"), tmp_path / "prompts") / "prompts" / "stills.json"
    assert [p["frame"] for p in json.loads(prompts.read_text("utf-8"))["prompts"]] == [0, 4]
    matte = export(Export(result, "mattes"), tmp_path / "mattes") / "stills" / "object-1" / "00006.png"
    assert np.array_equal(np.asarray(Image.open(matte))[..., :3], image_of(3))


# -------------------------------------------------------------------------------------------- folder


def test_the_same_export_may_run_again_and_leaves_nothing_of_the_earlier_one(
    result: Path, tmp_path: Path
) -> None:
    out = export(Export(result, "davis"), tmp_path / "out")
    (out / "clip" / "00099.png").write_bytes(b"of a longer video")
    export(Export(result, "davis"), out)
    assert len(list((out / "clip").iterdir())) == FRAMES


@pytest.mark.parametrize("holds", ["notes.txt", "export.json"])
def test_another_content_is_not_overwritten_unless_asked(result: Path, tmp_path: Path, holds: str) -> None:
    out = tmp_path / "out"
    if holds == "export.json":
        export(Export(result, "davis"), out)
    else:
        out.mkdir()
        (out / holds).write_text("mine")
    with pytest.raises(UsageError, match=r"out: holds .*--overwrite"):
        export(Export(result, "coco"), out)
    export(Export(result, "coco"), out, overwrite=True)
    assert (out / "annotations" / "instances_default.json").is_file()
    assert not (out / "clip").exists()
    assert holds == "export.json" or (out / holds).read_text() == "mine"


@pytest.mark.parametrize("kind", ["davis", "youtube-vos", "prompts", "mots"])
def test_ids_that_a_format_cannot_hold_are_refused_before_anything_is_written(
    crowded: Path, tmp_path: Path, kind: str
) -> None:
    with pytest.raises(UsageError, match=r"ids up to 1200.*--to coco"):
        export(Export(crowded, kind), tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_large_ids_go_into_json(crowded: Path, tmp_path: Path) -> None:
    data = COCO(
        str(export(Export(crowded, "coco"), tmp_path / "out") / "annotations" / "instances_default.json")
    )
    assert {a["track_id"] for a in data.anns.values()} == {1, 1200}


def test_what_is_missing_is_named(result: Path, crowded: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no result folder"):
        export(Export(tmp_path, "coco"), tmp_path / "a")
    with pytest.raises(UsageError, match=r"'horse' is no finished video.*clip, stills"):
        export(Export(result, "coco", ("horse",)), tmp_path / "a")
    with pytest.raises(VideoError, match=r"clip\.mp4: no such file"):
        export(Export(crowded, "mattes"), tmp_path / "a")
    stream = make_result(tmp_path / "stream", {"stdin": Path("-")})
    with pytest.raises(VideoError, match=r"came from a stream.*--to coco"):
        export(Export(stream, "prores"), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(UsageError, match="--model"):
        export(Export(result, "features"), tmp_path / "b")
    copy = tmp_path / "copy"
    shutil.copytree(result, copy)
    (copy / "videos" / "clip" / "masks" / "00003.png").unlink()
    with pytest.raises(MaskError, match=r"00003\.png"):
        export(Export(copy, "coco"), tmp_path / "c")
    assert [p.name for p in (tmp_path / "c").rglob("*") if p.is_file()] == ["export.json"]


def test_the_command_prints_the_folder_and_explains_an_unknown_kind(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", str(result), "--to", "mots", "-o", str(tmp_path / "out")])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    with pytest.raises(SystemExit) as ended:
        main(["export", str(result), "--to", "avi", "-o", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "coco, ytvis, davis" in capsys.readouterr().err


def test_exporting_masks_imports_no_torch() -> None:
    code = "import sys, unspool.export; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
