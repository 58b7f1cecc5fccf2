"""`unspool eval clustering` as a person types it, on trees small enough to look at."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unspool.cli import main
from unspool.masks import write_mask

HEIGHT, WIDTH = 24, 32
SMALL = ("--resolution", 64, "--device", "cpu", "--seeds", 2, "--sample", 16, "--frames", 2)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["eval", "clustering", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, re.sub(r"\s+", " ", err)

    return call


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def davis(root: Path, ids: dict[str, list[int]], frames: int = 3) -> Path:
    """A DAVIS tree: a bright rectangle of each id, moving over noise."""
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("\n".join(ids))
    for name, own in ids.items():
        for t in range(frames):
            image = np.random.default_rng(t).integers(0, 60, (HEIGHT, WIDTH, 3)).astype(np.uint8)
            labels = np.zeros((HEIGHT, WIDTH), np.uint8)
            for place, id_ in enumerate(own):
                labels[4:20, 2 + 10 * place + t % 8 : 10 + 10 * place + t % 8] = id_
                image[labels == id_] = (250, 90 * place, 40)
            pictures, masks = (root / part / "480p" / name for part in ("JPEGImages", "Annotations"))
            for folder in (pictures, masks):
                folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(pictures / f"{t:05d}.jpg")
            write_mask(masks / f"{t:05d}.png", labels)
    return root


def test_scores_tables_pictures_and_page_of_two_encoders(run: Run, tmp_path: Path) -> None:
    davis(tmp_path / "DAVIS", {"cows": [1, 3], "goat": [1]})
    models = ("--model", "random-vits16", "--before", "random-resnet18")
    arguments = ("--data", "davis17:DAVIS", *models, *SMALL, "--protocol", "f", "c", "d")
    code, out, err = run(*arguments, "-o", "out")
    assert code == 0, err
    names = ["cluster-frame-hungarian", "cluster-clip-hungarian", "cluster-dataset-hungarian"]
    assert [line.split(":")[0] for line in out.splitlines()[:3]] == names
    scores = read(tmp_path / "out/scores.json")
    assert list(scores["table"]["model"]) == list(scores["table"]["before"]) == names
    assert [scores["table"]["model"][name]["units"] for name in names] == [6, 4, 1]  # clips of 2, 1; 2, 1
    assert set(scores["sequences"]) == {"cows", "goat"}
    assert {c["id"]: c["frames"] for c in scores["classes"]} == {0: 6, 1: 6, 3: 3}
    assert sum(c["share"] for c in scores["classes"]) == pytest.approx(1, abs=1e-5)
    rows = list(csv.DictReader((tmp_path / "out/scores.csv").open()))
    assert {row["model"] for row in rows} == {"random-vits16", "random-resnet18"}
    for row in ("truth", "before", "model"):
        assert Image.open(tmp_path / f"out/pictures/cows/cows-{row}.jpg").size == (2 * 192, 144)
    page = (tmp_path / "out/index.html").read_text("utf-8")
    assert "pictures/goat/goat-before.jpg" in page and "cluster-clip-hungarian" in page
    assert "object 1 of every video" in err and "object 1 of every video" in page

    before = (tmp_path / "out/scores.json").read_bytes()
    code, _, err = run(*arguments, "-o", "out")
    assert code == 0 and "already done" in err  # nothing is computed again
    assert (tmp_path / "out/scores.json").read_bytes() == before
    code, _, err = run(*arguments, "--clusters", 2, "-o", "out")
    assert code == 2 and "holds results of other settings" in err


def test_the_progress_of_clustering_is_told_up_to_the_end(run: Run, tmp_path: Path) -> None:
    davis(tmp_path / "DAVIS", {"cows": [1, 3]})
    models = ("--model", "random-resnet18", "--before", "random-resnet18")
    _, out, _ = run("--data", "davis17:DAVIS", *models, *SMALL, "--protocol", "f", "d", "-o", "out", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    stages = [event for event in events if event["event"] == "stage"]
    last = {event["video"]: (event["stage"], event["done"], event["total"]) for event in stages}
    assert last == {"cows": ("clustering", 6, 6), "data-set": ("clustering", 6, 6)}


@pytest.mark.parametrize(
    ("protocol", "clusters", "points"),
    [("overcluster-dataset", 49, "the data set, which has 48 tokens"),
     ("overcluster-clip", 50177, "a clip of 1 frame, which has 50176 pixels")],
)  # fmt: skip
def test_more_clusters_than_tokens_are_told_before_anything_is_encoded(
    run: Run, tmp_path: Path, protocol: str, clusters: int, points: str
) -> None:
    davis(tmp_path / "DAVIS", {"cows": [1]})
    arguments = ("--data", "davis17:DAVIS", *SMALL, "--model", "random-vits16", "--protocol", protocol)
    code, _, err = run(*arguments, "--clusters", clusters, "-o", "out")
    assert code == 2
    assert f"--clusters {clusters}: {protocol}-many-precision clusters {points}; use --clusters " in err
    assert not (tmp_path / "out").exists()


def test_as_many_clusters_as_tokens_are_made(run: Run, tmp_path: Path) -> None:
    davis(tmp_path / "DAVIS", {"cows": [1]})
    protocols = ("--model", "random-vits16", "--protocol", "overcluster-dataset")
    code, _, err = run("--data", "davis17:DAVIS", *SMALL, *protocols, "--clusters", 48, "-o", "out")
    assert code == 0, err


def test_a_video_of_void_alone_is_left_out(run: Run, tmp_path: Path) -> None:
    davis(tmp_path / "DAVIS", {"cows": [1], "void": []})
    for path in (tmp_path / "DAVIS/Annotations/480p/void").iterdir():
        write_mask(path, np.full((HEIGHT, WIDTH), 255, np.uint8))
    code, _, err = run("--data", "davis17:DAVIS", *SMALL, "--protocol", "c", "-o", "out")
    assert code == 0, err
    assert read(tmp_path / "out/scores.json")["table"]["model"]["cluster-clip-hungarian"]["units"] == 2


def test_a_config_file_gives_what_the_command_line_does_not(run: Run, tmp_path: Path) -> None:
    davis(tmp_path / "DAVIS", {"cows": [1]})
    (tmp_path / "c.toml").write_text('model = "random-resnet18"\nprotocol = ["f"]\nseeds = 3\n')
    code, _, err = run("--data", "davis17:DAVIS", *SMALL, "--config", "c.toml", "-o", "out")
    assert code == 0, err
    config = read(tmp_path / "out/run.json")["config"]
    assert list(config["protocols"]) == ["cluster-frame-hungarian"]
    (tmp_path / "c.toml").write_text("seed_count = 3\n")
    code, _, err = run("--data", "davis17:DAVIS", "--config", "c.toml")
    assert code == 2 and "'seed_count' is no setting" in err


def test_less_memory_leaves_the_scores_as_they_are(run: Run, tmp_path: Path) -> None:
    davis(tmp_path / "DAVIS", {"cows": [1], "goat": [1, 2]})
    some = ("--data", "davis17:DAVIS", *SMALL, "--model", "random-vits16", "--protocol", "d")
    assert run(*some, "-o", "a")[0] == 0
    code, _, err = run(*some, "--memory", "1MB", "-o", "b")
    assert code == 2
    least = re.search(r"the least that works is ([0-9.]+)GB", err)
    assert least
    code, _, err = run(*some, "--memory", f"{float(least[1]) + 0.2}GB", "-o", "b")
    assert code == 0, err
    assert read(tmp_path / "a/scores.json")["table"] == read(tmp_path / "b/scores.json")["table"]


def test_voc_is_scored_as_a_whole_with_all_its_classes(run: Run, tmp_path: Path) -> None:
    for folder in ("sets", "images", "SegmentationClass"):
        (tmp_path / "VOC" / folder).mkdir(parents=True)
    (tmp_path / "VOC/sets/val.txt").write_text("a\nb\n")
    for place, name in enumerate("ab"):
        labels = np.zeros((HEIGHT, WIDTH + place), np.uint8)  # sizes vary
        labels[2:9, 3:9], labels[12:14] = 15, 255
        write_mask(tmp_path / f"VOC/SegmentationClass/{name}.png", labels)
        Image.fromarray(np.repeat(labels[..., None], 3, 2)).save(tmp_path / f"VOC/images/{name}.jpg")
    names = ("cluster-voc-k21", "cluster-voc-k21-timet")
    code, _, err = run("--data", "voc:VOC", *SMALL, "--protocol", *names, "-o", "out")
    assert code == 0, err
    hows = read(tmp_path / "out/run.json")["config"]["protocols"]
    assert [(name, how["at"], how["side"]) for name, how in hows.items()] == [
        ("cluster-voc-k21", "tokens", 100), ("cluster-voc-k21-timet", "pixels", 112),
    ]  # fmt: skip
    assert set(read(tmp_path / "out/scores.json")["table"]["model"]) == set(names)
    classes = read(tmp_path / "out/scores.json")["classes"]
    assert {c["name"] for c in classes} == {"background", "person"}
    assert (tmp_path / "out/pictures/data-set/a-model.jpg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "coco:x"), "expected KIND:PATH, KIND one of davis17, ytvos, visor, voc, rendered"),
        (("--data", "davis17:nowhere"), "no such folder nowhere"),
        (("--data", "rendered:many"), "expected rendered:N"),
        (("--data", "rendered:1", "--protocol", "cluster-all"), "protocol 'cluster-all' is unknown"),
        (("--data", "rendered:1", "--protocol", "cluster-voc-k21"), "cannot be used with rendered"),
        (("--data", "rendered:1", "--seeds", 0), "--seeds 0"),
        (("--data", "rendered:1", "--model", "random-vits16", "--resolution", 100), "use --resolution 96"),
        (("--data", "rendered:1", "--clusters", -1), "clustering.clusters = -1 is out of range"),
    ],
)
def test_wrong_use_is_refused_before_any_work(
    run: Run, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    code, _, err = run(*arguments, "-o", "out")
    assert code == 2 and message in err.replace("│ ", "")
    assert not (tmp_path / "out").exists()


def test_visor_has_no_score_over_sequences(run: Run, tmp_path: Path) -> None:
    davis(tmp_path / "V", {"P01_01_seq_00001": [1]})
    code, _, err = run("--data", "visor:V", "--protocol", "d", "-o", "out")
    assert code == 2 and "its ids are local to a sequence" in err
