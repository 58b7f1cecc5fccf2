"""Evaluations on pictures leave a whole result, continue, and refuse other settings."""

import csv
import json
from pathlib import Path

import pytest

from unspool.cli import main
from unspool.errors import UsageError
from unspool.verbs_heads import Settings, linear_plan


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
    assert {"salient-jaccard", "salient-jaccard-label-free", "salient-bf", "cluster-k14-cbfe"} <= set(
        table["global"]  # type: ignore[call-overload]
    )
    assert "truth of the training pictures" in table["notes"]["salient-jaccard"]  # type: ignore[index]
    assert call(*SALIENT, *vit, "--data", "rendered:4", "-o", "b") == 0 and scores("b") == table


def test_an_encoder_without_attention_borrows_it() -> None:
    assert call(*SALIENT, "--data", "rendered:4", "-o", "a") == 2
    assert call(*SALIENT, "--data", "rendered:4", "--attention", "random-vits16", "-o", "b") == 0
    scores("b")
