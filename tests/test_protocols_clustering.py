from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from unspool.errors import DataError, UsageError
from unspool.metrics import clustering
from unspool.ops import kmeans
from unspool.ops.kmeans import KMeans
from unspool.protocols import clustering as protocol
from unspool.protocols.clustering import Clustering, Labelled, pooled, score_clips

QUICK = KMeans(iterations=10, tries=2)


def truth(clips: int, frames: int = 2, side: int = 12, seed: int = 0) -> list[np.ndarray]:
    """Rectangles of ids 0..3 in blocks of 3 pixels."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 4, (clips, frames, side // 3, side // 3)).astype(np.uint8)
    return list(small.repeat(3, axis=2).repeat(3, axis=3))


def features_of(labels: np.ndarray, noise: float = 0.01, seed: int = 0) -> Tensor:
    """One vector per id on a grid of tokens of 3 pixels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.from_numpy(labels[:, 1::3, 1::3].astype(np.int64))
    codes = torch.randn(8, 8, generator=torch.Generator().manual_seed(9))  # every channel says something
    clean = codes[ids].movedim(3, 1)
    return clean + noise * torch.randn(clean.shape, generator=generator)


def clips(count: int = 3) -> list[Labelled]:
    return [Labelled(f"clip{i}", features_of(ids), ids) for i, ids in enumerate(truth(count))]


@pytest.mark.parametrize("unit", ["frame", "clip", "dataset"])
@pytest.mark.parametrize("rule", ["hungarian", "many-iou", "many-precision"])
def test_features_that_tell_classes_apart_score_one(unit: str, rule: str) -> None:
    how = Clustering(unit, rule=rule, at="tokens", side=0, kmeans=QUICK, seeds=(0, 1))
    score = score_clips(clips(), how)
    assert score.bg == pytest.approx((1.0, 1.0))
    assert score.nobg == pytest.approx((1.0, 1.0))
    assert score.classes == pytest.approx({0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0})
    assert score.units == {"frame": 6, "clip": 3, "dataset": 1}[unit]
    assert score.name == f"cluster-{unit}-{rule}"


@pytest.mark.parametrize("unit", ["frame", "clip", "dataset"])
def test_features_that_tell_nothing_score_low(unit: str) -> None:
    noise = [replace(clip, features=torch.randn(2, 8, 4, 4)) for clip in clips()]
    how = Clustering(unit, at="tokens", side=0, kmeans=QUICK, seeds=(0,))
    assert score_clips(noise, how).bg[0] < 0.6


def test_a_unit_is_clustered_by_itself() -> None:
    """The same score whatever stands beside it: nothing is fitted over a loader's batch."""
    how = Clustering("clip", 3, at="pixels", side=8, kmeans=QUICK, seeds=(0, 1))
    noisy = [replace(clip, features=clip.features + torch.randn(2, 8, 4, 4)) for clip in clips()]
    alone = [score_clips([clip], how) for clip in noisy]
    together = score_clips(noisy, how)
    assert together.bg == pytest.approx([np.mean([one.bg[s] for one in alone]) for s in range(2)])


def test_means_and_deviations_are_over_seeds() -> None:
    noisy = [replace(clip, features=torch.randn(2, 8, 4, 4)) for clip in clips()]
    how = Clustering("frame", 5, "many-precision", "tokens", 0, kmeans=KMeans(1, 1), seeds=(3, 4, 5))
    summary = score_clips(noisy, how).summary()
    assert set(summary) == {
        f"overcluster-frame-many-precision-{end}" for end in ("bg", "bg-sd", "nobg", "nobg-sd")
    }
    singles = [score_clips(noisy, replace(how, seeds=(seed,))).bg[0] for seed in (3, 4, 5)]
    assert summary["overcluster-frame-many-precision-bg"] == pytest.approx(np.mean(singles))
    assert summary["overcluster-frame-many-precision-bg-sd"] == pytest.approx(np.std(singles, ddof=1))


def test_a_data_set_larger_than_memory_gives_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    how = Clustering("dataset", at="pixels", side=12, kmeans=QUICK, seeds=(0,))
    whole = score_clips(clips(8), how)
    monkeypatch.setattr(protocol, "HELD", 4 * 8 * 500)  # 500 of 2304 points
    fitted: list[int] = []
    fit = kmeans.fit

    def counted(points: Tensor, *rest: object, **more: object) -> Tensor:
        fitted.append(len(points))
        return fit(points, *rest, **more)

    monkeypatch.setattr(kmeans, "fit", counted)
    sampled = score_clips(clips(8), how)
    assert fitted[0] < 700
    assert sampled.bg == pytest.approx(whole.bg, abs=0.05)


def test_void_does_not_count_and_is_no_cluster_of_its_own() -> None:
    ids = truth(1)[0]
    ids[:, :3] = 255
    tokens = features_of(np.where(ids == 255, 7, ids))
    for unit in ("frame", "clip", "dataset"):
        how = Clustering(unit, 5, "many-precision", "tokens", 0, kmeans=QUICK, seeds=(0,))
        score = score_clips([Labelled("clip", tokens, ids)], how)
        assert score.bg == pytest.approx((1.0,))
        assert 255 not in score.classes


def test_units_of_void_alone_are_not_scored() -> None:
    one, *_ = clips(1)
    void = Labelled("void", one.features, np.full_like(one.truth, 255))
    how = Clustering("clip", at="tokens", side=0, kmeans=QUICK, seeds=(0,))
    assert score_clips([one, void], how).units == 1
    with pytest.raises(DataError, match="void throughout"):
        score_clips([void], how)


def test_a_class_absent_from_a_clip_is_not_scored_there_but_fixed_classes_are() -> None:
    ids = np.minimum(truth(1)[0], 1)
    clip = Labelled("clip", features_of(ids), ids)
    how = Clustering("dataset", 2, at="tokens", side=0, kmeans=QUICK, seeds=(0,))
    assert score_clips([clip], how).bg == pytest.approx((1.0,))
    assert score_clips([clip], replace(how, classes=4)).bg == pytest.approx((0.5,))


def test_more_clusters_than_tokens_are_refused_with_the_clip_named() -> None:
    how = Clustering("frame", 17, at="tokens", side=0, kmeans=QUICK)
    with pytest.raises(DataError, match="clip0, frame 0: 17 clusters of 16 tokens"):
        score_clips(clips(1), how)


def test_a_data_set_without_clips_is_refused() -> None:
    with pytest.raises(DataError, match="no clips"):
        score_clips([], Clustering("dataset"))


@pytest.mark.parametrize("wrong", [{"unit": "video"}, {"clusters": -1}, {"rule": "best"}, {"seeds": ()}])
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"clustering.{next(iter(wrong))} = "):
        Clustering(**{"unit": "clip", **wrong})


def test_pixels_are_clustered_as_stretched_features_plainly() -> None:
    clip = replace(clips(1)[0], features=torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0)))
    how = Clustering("clip", 4, at="pixels", side=9, dims=6, kmeans=QUICK, seeds=(2,))
    tokens = clip.features.movedim(1, 3).reshape(-1, 6)
    standard = (tokens - tokens.mean(0)) / tokens.std(0, correction=0)
    axes = torch.linalg.eigh(standard.T.double() @ standard.double())[1].flip(1)
    axes = (axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()).float()
    maps = (standard @ axes).view(2, 4, 4, 6).movedim(3, 1)
    pixels = torch.nn.functional.interpolate(maps, (9, 9), mode="bilinear").movedim(1, 3).reshape(-1, 6)
    labels = kmeans.nearest(pixels, kmeans.fit(pixels, 4, 2, QUICK)).view(2, 9, 9).numpy()
    expected = clustering(labels, protocol.resized_truth(clip.truth, 9), "hungarian")
    assert score_clips([clip], how).bg[0] == pytest.approx(expected.miou(), abs=1e-6)


def test_every_named_protocol_runs() -> None:
    for how in protocol.PROTOCOLS.values():
        few = replace(how, clusters=min(how.clusters, 12), side=min(how.side, 12), seeds=(0,), kmeans=QUICK)
        assert 0 <= score_clips(clips(2), few).bg[0] <= 1


def test_scores_of_parts_pool_to_that_of_all_units() -> None:
    how = Clustering("clip", side=12, kmeans=QUICK, seeds=(0, 1))
    every = clips(3)
    whole, parts = score_clips(every, how), [score_clips(part, how) for part in (every[:1], every[1:])]
    found = pooled(parts)
    assert found.units == 3 and found.having == whole.having
    assert found.bg == pytest.approx(whole.bg) and found.nobg == pytest.approx(whole.nobg)
    assert found.classes == pytest.approx(whole.classes)


@pytest.mark.parametrize("unit", ["frame", "clip", "dataset"])
def test_clusters_are_drawn_as_the_classes_that_they_match(unit: str) -> None:
    drawn: dict[str, np.ndarray] = {}

    def draw(of: Labelled, classes: np.ndarray) -> bool:
        drawn[of.name] = classes
        assert np.array_equal(classes, of.truth)  # features tell classes apart
        return True

    how = Clustering(unit, at="tokens", side=12, kmeans=QUICK, seeds=(0, 1))  # type: ignore[arg-type]
    score_clips(clips(2), how, draw)
    assert len(drawn) == (4 if unit == "frame" else 2)


def test_a_data_set_is_drawn_until_no_more_is_wanted() -> None:
    drawn = []
    how = Clustering("dataset", at="tokens", side=12, kmeans=QUICK, seeds=(0,))
    score_clips(clips(3), how, lambda of, classes: bool(drawn.append(of.name)))
    assert drawn == ["clip0"]


@pytest.mark.parametrize("unit", ["frame", "clip", "dataset"])
def test_progress_counts_every_frame_once(unit: str) -> None:
    told: list[float] = []
    score_clips(clips(), Clustering(unit, side=0, dims=3, seeds=(0, 1)), progress=told.append)
    assert sum(told) == pytest.approx(sum(len(clip.truth) for clip in clips()))
    assert len(told) > 2 * 3
