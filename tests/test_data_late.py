"""Sequences whose objects start late, on trees in the published layouts."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unspool.cli import main
from unspool.data.late import late_visor, late_ytvos, starting
from unspool.errors import DataError, UsageError
from unspool.masks import read_truth, write_mask

HEIGHT, WIDTH = 32, 48
STEMS = ("00010", "00015", "00020", "00025", "00030")  # not every video starts at 0, names step by five


def frames(root: Path, name: str, masks: dict[str, tuple[int, ...]], stems: tuple[str, ...] = STEMS) -> None:
    """A square of its own place for every id, and masks in some frames."""
    rng = np.random.default_rng(0)
    for part in ("JPEGImages", "Annotations"):
        (root / part / name).mkdir(parents=True)
    for stem in stems:
        picture = rng.integers(0, 60, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        for id_ in masks.get(stem, ()):
            x = 255 - id_ if id_ == 255 else 8 * id_
            labels[8:24, x : x + 8] = id_
        picture[labels > 0] += 120
        Image.fromarray(picture).save(root / "JPEGImages" / name / f"{stem}.jpg")
        if stem in masks:
            write_mask(root / "Annotations" / name / f"{stem}.png", labels)


def described(root: Path, **videos: dict[str, tuple[str, tuple[str, ...]]]) -> None:
    content = {
        name: {"objects": {i: {"category": kind, "frames": list(where)} for i, (kind, where) in o.items()}}
        for name, o in videos.items()
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "meta.json").write_text(json.dumps({"videos": content}))


def valid_tree(root: Path) -> Path:
    """As valid is published: the first mask of each object, ids with gaps."""
    described(root / "valid", a0={"1": ("ape", STEMS), "4": ("yak", STEMS[2:])})
    frames(root / "valid", "a0", {"00010": (1, 255), "00020": (4,)})
    described(root / "train", b0={"1": ("ape", STEMS)})
    return root


def truth_tree(root: Path) -> Path:
    """valid with held truth: one category that training has, one that it has not."""
    valid_tree(root)
    for part in ("JPEGImages", "Annotations"):
        for path in (root / "valid" / part / "a0").iterdir():
            path.unlink()
        (root / "valid" / part / "a0").rmdir()
    frames(root / "valid", "a0", {s: (1,) if s < "00020" else (1, 4) for s in STEMS})
    return root


def test_valid_gives_each_object_where_it_starts_and_has_no_truth(tmp_path: Path) -> None:
    content = late_ytvos(valid_tree(tmp_path))
    (video,) = content.sequences
    assert (content.split, content.seen, video.scored) == ("valid", frozenset({"ape"}), False)
    assert video.frame_names == STEMS and video.annotated == (0, 2)
    assert [(t, np.unique(labels).tolist()) for t, _, labels in video.given()] == [(0, [0, 1]), (2, [0, 4])]
    assert [labels is None for labels in video.labels()] == [False, True, False, True, True]


def test_masks_beyond_the_starts_are_truth(tmp_path: Path) -> None:
    (video,) = late_ytvos(truth_tree(tmp_path)).sequences
    assert video.scored and video.categories == {1: "ape", 4: "yak"}
    assert [(t, np.unique(labels).tolist()) for t, _, labels in video.given()] == [(0, [0, 1]), (2, [0, 4])]


def test_of_train_a_fixed_fifth_is_read(tmp_path: Path) -> None:
    names = [f"v{n}" for n in range(5)]
    described(tmp_path / "train", **{name: {"1": ("ape", STEMS)} for name in names})
    for name in names:
        frames(tmp_path / "train", name, dict.fromkeys(STEMS, (1,)))
    content = late_ytvos(tmp_path)
    assert len(content.sequences) == 1 and content.split == "a fifth of train"
    assert [v.name for v in late_ytvos(tmp_path / "train").sequences] == [content.sequences[0].name]
    with pytest.raises(UsageError, match=r"'cat' is not in .*meta\.json, which has 5"):
        late_ytvos(tmp_path, ("cat",))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"meta\.json: not found; no YouTube-VOS tree"):
        late_ytvos(tmp_path)
    root = valid_tree(tmp_path)
    (root / "valid/JPEGImages/a0/00020.jpg").unlink()
    with pytest.raises(DataError, match=r"00020\.png: a mask without its frame"):
        late_ytvos(root)
    for path in (root / "valid/JPEGImages/a0").iterdir():
        path.unlink()
    (root / "valid/JPEGImages/a0").rmdir()
    with pytest.raises(DataError, match=r"JPEGImages/a0: not found, but 'a0' is listed; unpack it"):
        late_ytvos(root)


def test_an_object_that_comes_back_starts_once(tmp_path: Path) -> None:
    frames(tmp_path, "a", {"00010": (1,), "00015": (), "00020": (1, 2)})
    masks = [(n, tmp_path / "Annotations/a" / f"{s}.png") for n, s in enumerate(STEMS[:3])]
    assert [(t, np.unique(labels).tolist()) for t, _, labels in starting(iter(masks))] == [
        (0, [0, 1]),
        (2, [0, 2]),
    ]


def visor_tree(root: Path) -> Path:
    stems = tuple(f"P01_107_frame_{n:010d}" for n in (140, 150, 198, 391))
    (root / "ImageSets/2022").mkdir(parents=True)
    (root / "ImageSets/2022/val.txt").write_text("P01_107_seq_00001\n")
    masks = {stems[0]: (1,), stems[2]: (1, 4), stems[3]: (4,)}
    frames(root, "P01_107_seq_00001", masks, stems)
    for part in ("JPEGImages", "Annotations"):
        (root / part / "480p").mkdir()
        (root / part / "P01_107_seq_00001").rename(root / part / "480p" / "P01_107_seq_00001")
    return root


def test_visor_is_scored_where_it_has_masks(tmp_path: Path) -> None:
    (video,) = late_visor(visor_tree(tmp_path)).sequences
    assert video.annotated == (0, 2, 3) and len(video.frame_names) == 4
    assert [t for t, _, _ in video.given()] == [0, 2]


# --------------------------------------------------------------------------------------------- the verb


def tracked(data: str, folder: Path) -> int:
    small = ("--model", "random-vits16", "--resolution", "32", "--device", "cpu", "--set", "features=tokens")
    with pytest.raises(SystemExit) as ended:
        main(["eval", "tracking", "--data", data, *small, "-o", str(folder)])
    return int(ended.value.code or 0)


def scores(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    return content


def test_without_truth_a_submission_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    valid_tree(tmp_path / "YT")
    assert tracked(f"ytvos:{tmp_path / 'YT'}", tmp_path / "r") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "no truth" in said and "submission written" in said
    assert not (tmp_path / "r/scores.json").exists()
    with zipfile.ZipFile(tmp_path / "r/submission.zip") as archive:
        assert archive.namelist() == [f"Annotations/a0/{stem}.png" for stem in STEMS]
        archive.extractall(tmp_path / "x")
    ids = [np.unique(read_truth(tmp_path / f"x/Annotations/a0/{s}.png")).tolist() for s in STEMS]
    assert ids[0] == [0, 1] and 4 not in ids[1] and 4 in ids[2]


def test_held_truth_gives_g_over_seen_and_unseen_categories(tmp_path: Path) -> None:
    truth_tree(tmp_path / "YT")
    assert tracked(f"ytvos:{tmp_path / 'YT'}", tmp_path / "r") == 0
    table = scores(tmp_path / "r")
    g = table["ytvos-g"]
    assert table["protocol"] == "vos-late" and (g["objects_seen"], g["objects_unseen"]) == (1, 1)
    assert g["G"] == pytest.approx(
        np.mean([g[k] for k in ("J_seen", "F_seen", "J_unseen", "F_unseen")]), abs=2e-6
    )
    assert table["standing still"]["global"]["J-Mean"] == 1.0  # squares that never move
    assert (tmp_path / "r/submission.zip").is_file()


def test_visor_is_tracked_and_scored(tmp_path: Path) -> None:
    visor_tree(tmp_path / "V")
    assert tracked(f"visor:{tmp_path / 'V'}", tmp_path / "r") == 0
    table = scores(tmp_path / "r")
    assert table["protocol"] == "vos-late" and "ytvos-g" not in table
    assert list(table["sequences"]["P01_107_seq_00001"]["objects"]) == ["1", "4"]
