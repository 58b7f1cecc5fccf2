"""Evaluations on pictures leave a whole result, continue, and refuse other settings."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from unspool.cli import main
from unspool.data.features import Kept
from unspool.errors import UsageError
from unspool.protocols.incontext import memory_of, patch_labels
from unspool.verbs.heads import Settings, linear_plan
from unspool.verbs.heads.incontext import InContext, _filled


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


@pytest.mark.parametrize("rows", [0, 12])
def test_a_memory_filled_picture_by_picture_is_that_of_all(rows: int) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((4, 6, 3, 3)).astype(np.float16)
    labels = rng.integers(0, 3, (4, 12, 12)).astype(np.uint8)
    how = InContext(rows=rows)
    found = _filled(Kept({"tokens": tokens}, labels, "key"), 3, how, 4, torch.device("cpu"))
    generator = torch.Generator().manual_seed(how.seed)
    uniform = torch.cat([torch.rand((1, 9), generator=generator) for _ in range(4)])
    features = torch.from_numpy(tokens.astype(np.float32)).flatten(2).transpose(1, 2)
    shares = patch_labels(torch.from_numpy(labels), 4, 3)
    expected = memory_of(features, shares, rows=rows or None, uniform=uniform)
    assert torch.equal(found.features, expected.features) and torch.equal(found.labels, expected.labels)
