from pathlib import Path

import pytest
import torch

from unspool import UsageError, render
from unspool.data.clips import Clips, Decoded, Stored
from unspool.data.frames import Decoder, store_frames
from unspool.data.sampling import Sampling
from unspool.data.scenes import FIRST_SEED, scenes

SMALL = {"size": (32, 48), "frames": 6}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))


def test_equal_seeds_give_equal_scenes_and_more_begin_with_fewer() -> None:
    assert scenes(5, seed=1) == scenes(5, seed=1)
    assert scenes(5, seed=1)[:3] == scenes(3, seed=1)
    assert scenes(3, seed=1) != scenes(3, seed=2)


def test_scenes_are_all_different_and_kept_apart_from_evaluation() -> None:
    pool = scenes(300)
    assert len({video.source for video in pool}) == 300
    assert all(video.scene is not None and video.scene.seed >= FIRST_SEED for video in pool)
    assert len({video.scene.objects for video in pool if video.scene}) == 7


def test_a_scene_is_footage_with_its_frames_size_and_times() -> None:
    (video,) = scenes(1, size=(32, 48), frames=6, fps=12)
    assert (video.frames, video.height, video.width, video.fps) == (6, 32, 48, 12)
    assert video.times[-1] == pytest.approx(5 / 12)


def test_frames_of_a_scene_are_those_that_render_gives() -> None:
    (video,) = scenes(1, **SMALL)
    assert video.scene is not None
    read = Decoder().read(video, [4, 1], 64)
    rendered = render(video.scene.seed, **{k: v for k, v in vars(video.scene).items() if k != "seed"}).video
    assert (read[0] == rendered[4]).all()
    assert (read[1] == rendered[1]).all()


def test_scenes_can_be_stored_and_stand_beside_footage() -> None:
    pool = scenes(3, **SMALL)
    store, broken = store_frames(pool, 24, workers=2)
    assert broken == ()
    how = Sampling(3, "permuted", 2)
    fresh, stored = (
        Clips([], how, way, batch=3, made=pool, made_share=1.0).batch_at(0, 0)
        for way in (Decoded(24, Decoder()), Stored(store))
    )
    assert all(torch.equal(a, b) for a, b in zip(fresh.frames, stored.frames, strict=True))
    assert fresh.sizes == [(24, 36)] * 3


def test_no_scenes_are_refused() -> None:
    with pytest.raises(UsageError, match="1 or more"):
        scenes(0)
