"""Features are encoded once, kept, and never trusted when the encoder has changed."""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn

from unspool.data import features
from unspool.data.features import BATCH, Kept, kept_features
from unspool.data.pictures import Picture, View, pictures, shown
from unspool.encoders import load_encoder
from unspool.errors import DataError, UsageError

SIDE = 32


class Noise:
    """Pictures that cost nothing; counts how often one is looked at."""

    kind, split, classes, digest = "noise", "val", 3, "a"

    def __init__(self, count: int = 3) -> None:
        self.count, self.read = count, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Picture:
        self.read += 1
        rng = np.random.default_rng(index)
        labels = rng.integers(0, 3, (40, 50), np.uint8)
        return Picture(np.repeat(labels[..., None] * np.uint8(100), 3, axis=2), labels)


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 8, 8)
        nn.init.constant_(self.layer.weight, 0.01)
        self.factor = 1.0  # code, not weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x) * self.factor
        return out


@pytest.fixture
def network() -> Patches:
    return Patches()


def keep(network: nn.Module, source: Noise, folder: Path, **more: object) -> Kept:
    encoder = load_encoder(network, patch=8, device="cpu")
    return kept_features(encoder, source, View(SIDE, SIDE), folder=folder, **more)  # type: ignore[arg-type]


def test_features_are_encoded_once(network: Patches, tmp_path: Path) -> None:
    source = Noise()
    first = keep(network, source, tmp_path)
    again = keep(network, source, tmp_path)
    assert source.read == 3 and first.maps["tokens"].dtype == np.float16
    assert np.array_equal(first.maps["tokens"], again.maps["tokens"])


def test_kept_features_are_the_encoders(network: Patches, tmp_path: Path) -> None:
    source = Noise()
    kept = keep(network, source, tmp_path)
    encoder = load_encoder(network, patch=8, device="cpu")
    image, labels = shown(source[1], View(SIDE, SIDE), 1)
    torch.testing.assert_close(kept.rows([1]), encoder(image[None])["tokens"], atol=1e-3, rtol=1e-2)
    assert np.array_equal(kept.labels[1], labels)


def test_other_weights_are_encoded_anew(network: Patches, tmp_path: Path) -> None:
    source = Noise()
    keep(network, source, tmp_path)
    nn.init.constant_(network.layer.weight, 0.02)
    keep(network, source, tmp_path)
    assert source.read == 6


def test_other_code_under_the_same_weights_is_noticed(network: Patches, tmp_path: Path) -> None:
    source = Noise()
    before = keep(network, source, tmp_path).rows([0])
    network.factor = 2.0
    after = keep(network, source, tmp_path).rows([0])
    assert source.read == 6
    torch.testing.assert_close(after, 2 * before, atol=1e-3, rtol=1e-2)


def test_other_pictures_are_encoded_anew(network: Patches, tmp_path: Path) -> None:
    source = Noise()
    keep(network, source, tmp_path)
    source.digest = "b"
    keep(network, source, tmp_path)
    assert source.read == 6


def test_encoding_goes_on_where_it_was_stopped(network: Patches, tmp_path: Path) -> None:
    source, whole = Noise(BATCH + 3), Noise(BATCH + 3)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(network, source, tmp_path / "a", passes=2, progress=stop)
    kept = keep(network, source, tmp_path / "a", passes=2)
    assert source.read == 2 * len(source)
    expected = keep(network, whole, tmp_path / "b", passes=2)
    assert np.array_equal(kept.maps["tokens"], expected.maps["tokens"])
    assert np.array_equal(kept.labels, expected.labels)


def test_a_size_that_the_encoder_does_not_take_is_refused(network: Patches, tmp_path: Path) -> None:
    encoder = load_encoder(network, patch=8, device="cpu")
    with pytest.raises(UsageError, match="--resolution 32"):
        kept_features(encoder, Noise(), View(30, 30), folder=tmp_path)


def test_views_of_a_pass_are_drawn_once_and_for_all() -> None:
    view = View(SIDE, SIDE, (0.5, 1.0), flip=0.5, jitter=0.5)
    picture = Noise()[0]
    one, other = shown(picture, view, 0, 0)[0], shown(picture, view, 0, 1)[0]
    assert torch.equal(one, shown(picture, view, 0, 0)[0]) and not torch.equal(one, other)


def test_labels_are_cut_and_mirrored_with_the_image() -> None:
    view = View(40, 40, (0.5, 1.0), flip=0.5)
    y, x = np.mgrid[:40, :40] // 20
    labels = (2 * y + x).astype(np.uint8)
    picture = Picture(np.repeat(labels[..., None] * np.uint8(60), 3, axis=2), labels)
    image, cut = shown(picture, view, 3)
    seen = (image[0] * 255 / 60).round()
    assert (seen == cut).float().mean() > 0.9


def test_labels_of_another_size_are_refused() -> None:
    picture = Picture(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9), np.uint8))
    with pytest.raises(DataError, match="picture 4"):
        shown(picture, View(8, 8), 4)


def test_rendered_pictures_have_classes_and_no_scene_in_both_splits() -> None:
    splits = pictures("rendered:2")
    train, val = splits["train"][0], splits["val"][0]
    assert 0 < val.labels.max() < splits["val"].classes
    assert not np.array_equal(train.image, val.image)


@pytest.mark.parametrize("data", ["rendered", "rendered:0", "rendered:x", "coco:x"])
def test_other_data_are_refused(data: str) -> None:
    with pytest.raises(UsageError, match="KIND:WHERE"):
        pictures(data)


class Told(Noise):
    """Slow pictures; each look at one is a line of a file."""

    def __init__(self, lines: Path) -> None:
        super().__init__(BATCH + 1)
        self.lines = lines

    def __getitem__(self, index: int) -> Picture:
        with self.lines.open("a") as file:
            file.write(f"{index}\n")
        time.sleep(0.05)
        return super().__getitem__(index)


def keep_told(folder: Path) -> np.ndarray:
    torch.manual_seed(0)
    return np.array(keep(Patches(), Told(folder / "lines.txt"), folder / "cache").maps["tokens"])


def test_of_two_processes_that_want_the_same_features_one_encodes(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        one, other = pool.map(keep_told, [tmp_path, tmp_path])
    looked_at = (tmp_path / "lines.txt").read_text().split()
    assert looked_at == [str(number) for number in range(BATCH + 1)]
    assert np.array_equal(one, other)
    assert np.abs(one).min(axis=(1, 2, 3)).all()  # every picture was there


def test_who_waits_for_another_process_can_be_stopped(
    network: Patches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyError(done, total)

    key = keep(network, Noise(), tmp_path).key
    monkeypatch.setattr(features, "ASKED_EVERY", 0.01)
    with FileLock(tmp_path / f".{key}.lock"), pytest.raises(KeyError, match="3, 3"):
        keep(network, Noise(), tmp_path, progress=stop)
