"""Evaluations on pictures leave a whole result, continue, and refuse other settings."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles_incontext import memory_of

from unspool.cli import main
from unspool.data.features import Kept
from unspool.errors import UsageError
from unspool.ops import neighbours
from unspool.protocols.incontext import enlarged, labelled, needs, patch_labels
from unspool.verbs.heads import Settings, linear_plan
from unspool.verbs.heads.incontext import RELEASED_STD, InContext, filled, predicted
from unspool.verbs.heads.shared import encoder_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["eval", *arguments, "--device", "cpu"])
    return int(ended.value.code or 0)


def scores(folder: str) -> dict[str, object]:
    table = json.loads(Path(folder, "scores.json").read_text())
    with Path(folder, "scores.csv").open() as file:
        rows = {row["score"]: float(row["value"]) for row in csv.DictReader(file)}
    assert rows == table["global"]
    assert json.loads(Path(folder, "run.json").read_text())["status"] == "done"
    assert Path(folder, "index.html").is_file()
    return table  # type: ignore[no-any-return]


LINEAR = ("linear", "--data", "rendered:2", "--resolution", "32", "--epochs", "2", "--views", "1")


def test_eval_linear_leaves_scores_a_page_and_the_same_again_from_the_cache(tmp_path: Path) -> None:
    assert call(*LINEAR, "-o", "a") == 0
    table = scores("a")
    assert table["protocol"] == "linear-rendered"
    assert set(table["global"]) == {"mIoU", "mIoU-best-on-val"}  # type: ignore[call-overload]
    assert (tmp_path / "a/videos/leopart-linear/masks/00001.png").is_file()
    stamps = [p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.npy")]
    assert call(*LINEAR, "-o", "b") == 0 and scores("b") == table
    assert stamps == [p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.npy")]
    assert call(*LINEAR, "-o", "a", "--seed", "5") == 2


@pytest.mark.parametrize("verb", ["linear", "incontext"])
def test_data_whose_ids_are_no_classes_is_refused_unread(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(verb, "--data", f"davis17:{tmp_path}") == 2
    assert "its ids are objects of their video, not classes" in capsys.readouterr().err


def test_the_shipped_encoder_is_the_usual_one() -> None:
    assert Settings().model == "dul-small"


def test_the_released_normalisation_is_what_the_encoder_takes_and_has_a_name_of_its_own(
    tmp_path: Path,
) -> None:
    some = ("incontext", "--data", "rendered:2", "--resolution", "32", "--neighbours", "2", "--rows", "8")
    assert call(*some, "--normalisation", "code", "-o", "a") == 0
    table = scores("a")
    assert table["protocol"] == "incontext-rendered-std255"
    assert table["settings"]["normalisation"] == "code"  # type: ignore[index]
    assert encoder_of(Settings(device="cpu", std=RELEASED_STD)).std == (0.229, 0.224, 0.255)


def test_another_recipe_is_refused() -> None:
    with pytest.raises(UsageError, match="there are leopart-linear"):
        linear_plan(
            output=None, settings=Settings(), data="rendered:2", recipe="crw", views=None, epochs=None
        )


SALIENT = ("salient", "--resolution", "64", "--clusters", "12")


def test_eval_salient_scores_with_and_without_truth(tmp_path: Path) -> None:
    vit = ("--model", "random-vits16")
    assert call(*SALIENT, *vit, "--data", "rendered:4", "-o", "a") == 0
    table = scores("a")
    assert {
        "salient-jaccard",
        "salient-jaccard-label-free",
        "salient-bf",
        "cluster-rendered-k14-cbfe",
    } <= set(
        table["global"]  # type: ignore[call-overload]
    )
    assert "truth of the training pictures" in table["notes"]["salient-jaccard"]  # type: ignore[index]
    assert call(*SALIENT, *vit, "--data", "rendered:4", "-o", "b") == 0 and scores("b") == table


def test_an_encoder_without_attention_borrows_it() -> None:
    assert call(*SALIENT, "--data", "rendered:4", "-o", "a") == 2
    assert call(*SALIENT, "--data", "rendered:4", "--attention", "random-vits16", "-o", "b") == 0
    scores("b")


def test_eval_incontext_scores_with_and_without_matching(tmp_path: Path) -> None:
    some = ("incontext", "--data", "rendered:3", "--resolution", "64", "--passes", "2", "--neighbours", "5")
    assert call(*some, "--rows", "60", "-o", "a") == 0
    table = scores("a")
    assert table["protocol"] == "incontext-rendered" and table["memory_rows"] == 60
    assert set(table["global"]) == {"identity", "hungarian"}  # type: ignore[call-overload]
    assert (tmp_path / "a/videos/incontext/masks/00002.png").is_file()
    assert call(*some, "--rows", "0", "-o", "b") == 0
    assert scores("b")["memory_rows"] == 2 * 3 * 8 * 8


def kept(pictures: int, seed: int = 0) -> Kept:
    rng = np.random.default_rng(seed)
    tokens = rng.standard_normal((pictures, 6, 3, 3)).astype(np.float16)
    return Kept({"tokens": tokens}, rng.integers(0, 3, (pictures, 12, 12)).astype(np.uint8), "key")


@pytest.mark.parametrize("rows", [0, 12])
def test_a_memory_filled_picture_by_picture_is_that_of_all(rows: int, tmp_path: Path) -> None:
    train, how = kept(4), InContext(rows=rows)
    stored = filled(train, 3, how, 4, tmp_path)
    found = stored.held(torch.device("cpu"))
    generator = torch.Generator().manual_seed(how.seed)
    uniform = torch.cat([torch.rand((1, 9), generator=generator) for _ in range(4)])
    features = train.rows(slice(None)).flatten(2).transpose(1, 2)
    shares = patch_labels(torch.from_numpy(train.labels), 4, 3)
    expected = memory_of(features, shares, rows=rows or None, uniform=uniform)
    torch.testing.assert_close(found.features, expected.features, atol=1e-6, rtol=0)
    assert torch.equal(found.labels, expected.labels)


def test_labels_looked_up_are_the_same_for_any_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "ROWS", 16)
    how, val, device = InContext(rows=0, neighbours=4), kept(7, 1), torch.device("cpu")
    memory = filled(kept(11), 3, how, 4, tmp_path)
    need = needs(9, 6, 3, 4)
    maps = [
        np.concatenate([m for _, m in predicted(val, memory, how, device, allowed)])
        for allowed in (None, need.least, need.fixed + 3 * need.image, need.fixed + 10 * need.image)
    ]
    assert all(np.array_equal(each, maps[0]) for each in maps[1:])
    whole = labelled(val.rows(slice(None)).flatten(2).transpose(1, 2), memory.held(device), k=4)
    assert np.array_equal(maps[0], enlarged(whole, (3, 3), (12, 12)))


def test_too_little_memory_to_look_up_names_the_least(capsys: pytest.CaptureFixture[str]) -> None:
    some = ("incontext", "--data", "rendered:3", "--resolution", "64", "--rows", "60")
    assert call(*some, "--memory", "1MB", "-o", "a") == 2
    least = re.search(r"the least that works is --memory\s+(\d+MB)", capsys.readouterr().err)
    assert least and call(*some, "--memory", least[1], "-o", "a") == 0
    assert not Path("a/memory").exists()
    assert call(*some, "-o", "b") == 0 and scores("a") == scores("b")
