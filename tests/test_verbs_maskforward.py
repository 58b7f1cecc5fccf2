"""`unspool eval tracking --protocol maskforward` as a person types it."""

import csv
import json
from pathlib import Path

import pytest
from test_verbs_clustering import davis

from unspool.cli import main


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["eval", "tracking", "--protocol", "maskforward", *map(str, arguments)])
    return int(end.value.code or 0)


def test_a_table_of_ways_and_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    davis(tmp_path / "DAVIS", {"cows": [1, 3], "goat": [1]}, frames=24)
    given = ("--data", f"davis17:{tmp_path / 'DAVIS'}", "--model", "random-vits16", "--resolution", 64)
    assert call(*given, "-o", tmp_path / "out") == 0
    out, _ = capsys.readouterr()
    assert out.startswith("maskforward, 0.1s: repeat ")
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert {"repeat-0.1s", "forwarder-0.8s"} <= set(scores["global"])
    for way, value in scores["global"].items():
        assert value == pytest.approx(sum(s[way] for s in scores["sequences"].values()) / 2, abs=1e-6)
    assert scores["global"]["repeat-0.8s"] < 1
    rows = list(csv.DictReader((tmp_path / "out/scores.csv").open()))
    assert {row["sequence"] for row in rows} == {"all", "cows", "goat"}
    assert "repeat-0.8s" in (tmp_path / "out/index.html").read_text("utf-8")


def test_a_sequence_without_an_object_fails_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    davis(tmp_path / "DAVIS", {"empty": []}, frames=24)
    code = call("--data", f"davis17:{tmp_path / 'DAVIS'}", "--resolution", 64, "-o", tmp_path / "out")
    assert code == 1
    assert "empty: no object in the first mask" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "ytvos:x"), "maskforward takes davis17:FOLDER"),
        (("--data", "davis17:x", "--preset", "dino"), "takes no --preset"),
        (("--data", "davis17:x", "--set", "features=keys"), "takes no --set"),
    ],
)
def test_wrong_use_is_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())
