import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_ba import plain_clusters
from torch import Tensor, nn

from unspool.encoders.correlator import Correlator
from unspool.errors import UnspoolWarning, UsageError, VideoError
from unspool.ops.clustering import Clustering
from unspool.ops.hierarchy import Tree
from unspool.segmentation import Carried, Segmentation, same
from unspool.segmenting import Segmenting, input_size, segment, segment_maps

HOW = Segmenting(clustering=Clustering(tau=0.5), finest=0.2, resolution=(32, 48), key_every=1)


class Colours(nn.Module):
    """An encoder of 8 px patches: mean colours, far apart."""

    name, patch, multiple, dim, offers = "colours", 8, 8, 6, ("tokens",)

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor, want: tuple[str, ...] = ("tokens",)) -> dict[str, Tensor]:
        colours = nn.functional.avg_pool2d(images - 0.5, 8)
        return {"tokens": 20 * torch.cat([colours, -colours], dim=1)}


class Blank(Colours):
    def forward(self, images: Tensor, want: tuple[str, ...] = ("tokens",)) -> dict[str, Tensor]:
        return {"tokens": super().forward(images, want)["tokens"] * float("nan")}


class Moving:
    """A red square that moves over green, a blue bar that stays."""

    name, height, width = "moving", 32, 48

    def __init__(self, frames: int, constant: bool = False) -> None:
        self.frames, self.constant = frames, constant

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in range(self.frames):
            image = np.zeros((32, 48, 3), np.uint8)
            if not self.constant:
                image[..., 1] = 200
                image[24:] = (0, 0, 250)
                left = 8 * (index % 5)
                image[0:16, left : left + 16] = (250, 0, 0)
            yield image


def correlator(encoder: Any = None) -> Correlator:
    """A block whose attention is strong enough for colours to stand apart."""
    torch.manual_seed(0)
    made = Correlator(encoder or Colours(), heads=1)
    weight = torch.zeros(18, 6)
    weight[:6] = weight[6:12] = 3 * torch.eye(6)
    weight[12:] = torch.eye(6)
    made.blocks[0].attn["qkv"].weight.data = weight
    return made.requires_grad_(False).train(False)


def truth(frames: int) -> np.ndarray:
    """0 square, 1 ground, 2 bar, on the grid."""
    found = np.ones((frames, 4, 6), int)
    found[:, 3] = 2
    for index in range(frames):
        found[index, :2, index % 5 : index % 5 + 2] = 0
    return found


def alike(labels: np.ndarray, expected: np.ndarray) -> bool:
    pairs = set(zip(labels.ravel().tolist(), expected.ravel().tolist(), strict=True))
    return len(pairs) == len(np.unique(labels)) == len(np.unique(expected))


# --------------------------------------------------------------------------------------- what is found


def test_objects_keep_their_identity_while_they_move() -> None:
    found = segment(Moving(6), correlator(), HOW)
    assert found.clusters == 3
    assert alike(found.labels, truth(6))


@pytest.mark.parametrize("frames", [13, 14, 17, 40])
def test_identities_are_carried_across_windows(frames: int) -> None:
    how = replace(HOW, window=8, overlap=3)
    found = segment(Moving(frames), correlator(), how)
    assert found.labels.shape == (frames, 4, 6)
    assert found.clusters == 3
    assert alike(found.labels, truth(frames))
    assert alike(found.at(0.6), truth(frames))


def test_one_window_is_the_published_procedure() -> None:
    module, frames = correlator(), 5
    images = torch.stack([torch.from_numpy(image) for image in Moving(frames)]).permute(0, 3, 1, 2)
    maps = module.encoder(images.float() / 255)["tokens"]
    tokens = module.embedded(maps).flatten(0, 1)
    q, k, _ = module.blocks[0].projections(tokens)
    attention = module.blocks[0].attention(q, k, torch.arange(len(tokens)), None).clamp(min=1e-10)
    labels, _ = plain_clusters(attention.double(), frames, 0.5)
    found = segment(Moving(frames), module, HOW)
    assert np.array_equal(found.labels.ravel(), labels.numpy())


@pytest.mark.parametrize("represent", ["features", "fused"])
def test_features_may_be_clustered_instead(represent: str) -> None:
    how = replace(HOW, represent=represent, clustering=Clustering(tau=0.1), finest=0.05)  # type: ignore[arg-type]
    assert alike(segment(Moving(4), correlator(), how).labels, truth(4))


@pytest.mark.parametrize("algorithm", ["paper", "kmeans"])
def test_other_algorithms_have_a_hierarchy_over_their_clusters(algorithm: str) -> None:
    how = replace(HOW, clustering=Clustering(tau=0.5, algorithm=algorithm, clusters=3))  # type: ignore[arg-type]
    found = segment(Moving(4), correlator(), how)
    assert alike(found.labels, truth(4))
    assert found.tree is not None
    assert np.unique(found.at(1e9)).tolist() == [0]


def test_attention_of_the_encoder_needs_a_vit() -> None:
    with pytest.raises(UsageError, match="needs a ViT"):
        segment(Moving(3), correlator(), replace(HOW, represent="attention"))


def test_attention_of_a_vit_is_clustered_frame_by_frame() -> None:
    from unspool.encoders import load_encoder

    how = replace(HOW, represent="attention", clustering=Clustering(tau=1e-4), finest=None)
    vit = load_encoder("random-vits16", device="cpu")
    whole = segment(Moving(5), vit, replace(how, window=4, overlap=1))
    assert whole.labels.shape == (5, 2, 3)
    alone = segment(Moving(1), vit, how)
    assert np.array_equal(whole.labels[0], alone.labels[0])


def test_granularity_is_a_look_up() -> None:
    found = segment(Moving(6), correlator(), HOW)
    fine, coarse = found.at(0.0), found.at(1e9)
    assert len(np.unique(coarse)) == 1
    assert len(np.unique(fine)) >= found.clusters
    with pytest.raises(UsageError, match="no hierarchy"):
        segment(Moving(6), correlator(), replace(HOW, finest=None)).at(1.0)


@pytest.mark.parametrize("frames", [1, 5, 8, 9])
def test_a_clip_without_a_whole_stride_is_refused(frames: int) -> None:
    how = replace(HOW, key_every=10, whole_strides=True)
    with pytest.raises(UsageError, match=f"{frames} frames hold no whole stride of key_every = 10"):
        segment(Moving(frames), correlator(), how)


@pytest.mark.filterwarnings("ignore:moving")
@pytest.mark.parametrize(("distance", "clusters"), [("cosine", 1), ("kl", 1), ("euclidean", 3)])
def test_features_may_be_compared_by_their_euclidean_distance(distance: Any, clusters: int) -> None:
    clustering = Clustering(tau=2.5, distance=distance)  # no cosine distance is above 2
    how = replace(HOW, represent="features", finest=None, clustering=clustering)
    assert segment(Moving(4), correlator(), how).clusters == clusters


def test_progress_counts_all_frames() -> None:
    seen: list[tuple[str, float]] = []
    segment(Moving(10), correlator(), replace(HOW, window=6, overlap=2), progress=lambda *e: seen.append(e))
    assert sum(n for stage, n in seen if stage == "encode") == 10
    assert sum(n for stage, n in seen if stage == "cluster") == pytest.approx(10)  # two share 2


@pytest.mark.parametrize("represent", ["block", "features"])
def test_progress_is_told_within_a_window(represent: Any) -> None:
    seen: list[float] = []

    def told(stage: str, frames: float) -> None:
        if stage == "cluster":
            seen.append(frames)

    segment(Moving(9), correlator(), replace(HOW, represent=represent), progress=told)
    assert len(seen) >= 4
    assert sum(seen) == pytest.approx(9)
    assert max(seen) <= 4


# --------------------------------------------------------------------------------------- windows


@settings(max_examples=20, deadline=None)
@given(
    frames=st.integers(9, 24),
    overlap=st.integers(1, 7),
    represent=st.sampled_from(["block", "features"]),
    finest=st.sampled_from([None, 0.3]),
    data=st.data(),
)
def test_a_video_goes_on_after_any_window_as_if_in_one_piece(
    frames: int, overlap: int, represent: Any, finest: float | None, data: st.DataObject
) -> None:
    how = replace(HOW, window=8, overlap=overlap, represent=represent, finest=finest)
    kept: list[dict[str, Any]] = []
    whole = segment(Moving(frames), correlator(), how, after_window=lambda c: kept.append(c.kept()))
    after = data.draw(st.integers(0, len(kept) - 1))
    encoded: list[str] = []
    found = segment(
        Moving(frames),
        correlator(),
        how,
        carried=Carried.recalled(kept[after]),
        progress=lambda stage, n: encoded.append(stage),
    )
    assert np.array_equal(found.labels, whole.labels)
    for cue, values in whole.cues.items():
        np.testing.assert_array_equal(found.cues[cue], values)
    done = len(kept[after]["labels"]["clusters"])
    assert encoded.count("encode") == frames - max(0, done - overlap)
    if finest is None:
        assert found.leaves is whole.leaves is None
        return
    assert np.array_equal(found.at(0.4), whole.at(0.4))
    assert found.tree is not None and whole.tree is not None
    assert torch.equal(found.tree.joins, whole.tree.joins)
    assert torch.equal(found.tree.heights, whole.tree.heights)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 6), seed=st.integers(0, 99))
def test_clusters_under_other_numbers_are_recognised(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    before = rng.integers(count, size=(2, 4, 5))
    order = rng.permutation(count)
    number = same(before, order[before], count, count)
    present = np.unique(before)
    assert np.array_equal(number[order[present]], present)
    assert len(np.unique(number)) == count


def test_a_cluster_that_nobody_had_gets_a_new_number() -> None:
    before = np.zeros((1, 2, 4), int)
    after = np.array([[[0, 0, 0, 1], [0, 0, 0, 1]]])
    assert same(before, after, 3, 7).tolist() == [0, 7, 8]


def test_no_more_maps_are_alive_than_a_window_has() -> None:
    alive = []

    def count(stage: str, frames: float) -> None:
        maps = [o for o in gc.get_objects() if type(o) is Tensor and o.shape == (6, 4, 6)]
        alive.append(len(maps))

    segment(Moving(30), correlator(), replace(HOW, window=8, overlap=2), progress=count)
    assert max(alive) <= 8 + 2


def test_the_memory_budget_changes_no_label() -> None:
    results = [segment(Moving(9), correlator(), replace(HOW, memory=memory)) for memory in (310_000, 1 << 30)]
    assert np.array_equal(results[0].labels, results[1].labels)
    assert np.array_equal(results[0].at(0.4), results[1].at(0.4))


# --------------------------------------------------------------------------------------- masks and sizes


def test_masks_are_the_nearest_tokens_of_every_pixel() -> None:
    labels = np.array([[[0, 1, 2]]])
    (mask,) = Segmentation((2, 7), labels, None, None).masks()
    assert mask.tolist() == [[1, 1, 1, 2, 2, 3, 3]] * 2
    assert mask.dtype == np.uint8


def test_more_clusters_than_an_indexed_png_holds_take_16_bits() -> None:
    for count, kind in ((254, np.uint8), (255, np.uint16)):
        labels = np.arange(count)[None, None]
        assert next(Segmentation((1, count), labels, None, None).masks()).dtype == kind


def test_the_input_is_320_by_480_the_other_way_round_for_upright_videos() -> None:
    encoder = Colours()
    assert input_size(480, 854, encoder, Segmenting()) == (320, 480)
    assert input_size(854, 480, encoder, Segmenting()) == (480, 320)
    assert input_size(45, 83, encoder, Segmenting(resolution=None)) == (40, 80)


def test_normalisation_as_released_shifts_the_input() -> None:
    ours, theirs = (
        segment_input(replace(HOW, normalisation=name))
        for name in ("imagenet", "kinetics")  # type: ignore[arg-type]
    )
    red = (ours / 20 + 0.5 - 0.43216) / 0.22803 * 0.229 + 0.485 - 0.5
    assert np.allclose(theirs, 20 * red, atol=1e-4)


def segment_input(how: Segmenting) -> np.ndarray:
    from unspool.segmenting import encoded

    image = next(iter(Moving(1)))
    return encoded(image, correlator(), (32, 48), how).map[0].numpy()


# ------------------------------------------------------------------------------- what stands out


@pytest.mark.parametrize("window", [8, 120])
def test_the_square_that_moves_stands_out(window: int) -> None:
    found = segment(Moving(12), correlator(), replace(HOW, window=window, overlap=3))
    square = int(found.labels[0, 0, 0]) + 1
    assert found.foreground() == square
    assert np.nanargmax(found.cues["motion"]) == square
    areas = np.bincount(found.labels[1:].ravel())
    moved = np.nansum(found.cues["motion"][1:] * areas)
    assert np.isclose(moved, 11 * 4 * 6)  # over the mean of every frame but the first


def test_of_clusters_that_were_dropped_none_is_the_foreground() -> None:
    found = segment(Moving(6), correlator(), HOW)
    left = np.where(found.labels + 1 == found.foreground(), 0, found.labels + 1)
    assert found.foreground(left) not in (0, found.foreground())
    assert found.foreground(np.zeros_like(left)) == 0


def test_one_frame_has_no_motion() -> None:
    assert list(segment(Moving(1), correlator(), HOW).cues) == ["border contact"]


@pytest.mark.parametrize("represent", ["block", "features", "attention"])
def test_to_look_at_the_class_token_changes_nothing_else(represent: Any) -> None:
    from unspool.encoders import load_encoder
    from unspool.encoders.correlator import untrained
    from unspool.segmenting import encoded

    vit = load_encoder("random-vits16", device="cpu")
    image = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    seen = encoded(image, untrained(vit), (32, 48), replace(HOW, represent=represent))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    wish = {"block": "keys", "features": "tokens"}.get(represent, represent)
    assert torch.equal(seen.map.flatten(), vit(pixels, want=(wish,))[wish].flatten())
    attention = vit(pixels, want=("cls_attention",))["cls_attention"][0].mean(0)
    assert torch.allclose(seen.cues["class attention"], attention / attention.mean())


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_fewer_frames_than_the_stride_of_key_frames_are_told_apart_too(frames: int) -> None:
    found = segment(Moving(frames), correlator(), replace(HOW, key_every=10))
    assert alike(found.labels, truth(frames))


def test_key_frames_as_released_need_a_whole_stride() -> None:
    maps = correlator().encoder(torch.rand(4, 3, 32, 48))["tokens"]
    how = replace(HOW, whole_strides=True)
    with pytest.raises(UsageError, match="no whole stride of key_every = 5"):
        segment_maps(maps, correlator(), how, 5)
    segment_maps(maps, correlator(), how, 4)


def test_key_frames_are_every_tenth_from_twenty_frames_on() -> None:
    assert [Segmenting().keys(frames) for frames in (1, 19, 20, 120)] == [1, 1, 10, 10]


def test_a_constant_video_is_one_cluster_and_says_so() -> None:
    with pytest.warns(UnspoolWarning, match="moving: all of it is one cluster at tau = 0.5"):
        found = segment(Moving(4, constant=True), correlator(), HOW)
    assert found.clusters == 1


def test_features_that_are_not_finite_are_an_error_that_names_the_frame() -> None:
    with pytest.raises(VideoError, match="moving: the features of frame 0 are not finite"):
        segment(Moving(3), correlator(Blank()), HOW)


def test_a_video_without_frames_is_an_error() -> None:
    with pytest.raises(VideoError, match="no frame"):
        segment(Moving(0), correlator(), HOW)


def test_too_little_memory_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"memory = 0 MB is too little.*key"):
        segment(Moving(6), correlator(), replace(HOW, memory=1000))


@pytest.mark.parametrize(
    "change",
    [
        {"finest": 0.0},
        {"resolution": (0, 8)},
        {"key_every": -1},
        {"window": 12},
        {"overlap": 0},
        {"memory": 0},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"segmenting.{next(iter(change))}"):
        Segmenting(**change)


def test_a_tree_without_leaves_is_cut_into_nothing() -> None:
    empty = Tree(0, torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, dtype=torch.float64))
    found = Segmentation((8, 8), np.zeros((0, 1, 1), int), np.zeros((0, 1, 1), int), empty)
    assert found.at(1.0).shape == (0, 1, 1)
    assert list(found.masks()) == []
