import tomllib
from dataclasses import asdict, fields, replace
from importlib.resources import files

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_propagation import propagate, run
from torch import Tensor
from torch.nn.functional import normalize

from unspool.errors import ShapeError, UsageError
from unspool.ops import propagation
from unspool.ops.propagation import CRW, DINO, DUL, Propagation, State
from unspool.tracking import tracking_preset

SMALL = replace(DUL, context=3, radius=2.5, top_k=4)


def clip(seed: int, frames: int, height: int, width: int) -> Tensor:
    """Unit features that change slowly, so that the matches are not all alike."""
    random = torch.Generator().manual_seed(seed)
    still = torch.randn(12, height, width, generator=random)
    moving = 0.5 * torch.randn(frames, 12, height, width, generator=random)
    return normalize(still + moving, dim=1)


def soft_masks(seed: int, ids: int, height: int, width: int) -> Tensor:
    return (
        torch.randn(ids, height, width, generator=torch.Generator().manual_seed(seed)).mul(4).softmax(dim=0)
    )


def carry(
    features: Tensor, given: dict[int, dict[int, Tensor]], how: Propagation
) -> list[tuple[State, Tensor]]:
    state, steps = propagation.start(), []
    for now, frame in enumerate(features):
        state, soft = propagation.step(state, frame, given.get(now), how)
        steps.append((state, soft))
    return steps


def carried(features: Tensor, first: Tensor, how: Propagation) -> Tensor:
    return torch.stack([soft for _, soft in carry(features, {0: dict(enumerate(first))}, how)])


settings_of_propagation = st.builds(
    Propagation,
    top_k=st.integers(1, 20),
    temperature=st.sampled_from([0.05, 0.1, 1.0]),
    context=st.integers(0, 5),
    repeat_reference=st.booleans(),
    neighbourhood=st.sampled_from(["disc", "square"]),
    radius=st.sampled_from([0.5, 1, 2.5, 3, 12]),
    restrict_reference=st.booleans(),
    keep_ties=st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(
    how=settings_of_propagation,
    height=st.integers(1, 9),
    width=st.integers(1, 11),
    frames=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
def test_the_operator_equals_the_publications_plain_form(
    how: Propagation, height: int, width: int, frames: int, seed: int
) -> None:
    features, first = clip(seed, frames, height, width), soft_masks(seed, 3, height, width)
    expected = run(features, first.flatten(1), how)
    torch.testing.assert_close(carried(features, first, how).flatten(2), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("preset", [DUL, CRW, DINO])
def test_presets_equal_the_publications_plain_form_on_a_wider_grid(preset: Propagation) -> None:
    features, first = clip(1, 4, 18, 27), soft_masks(1, 4, 18, 27)
    expected = run(features, first.flatten(1), preset)
    torch.testing.assert_close(carried(features, first, preset).flatten(2), expected, atol=1e-5, rtol=0)


def test_labels_that_sum_to_one_stay_so() -> None:
    soft = carried(clip(0, 6, 9, 11), soft_masks(0, 3, 9, 11), SMALL)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(6, 9, 11))


def test_the_order_of_the_context_changes_nothing() -> None:
    steps = carry(clip(0, 5, 9, 11), {0: dict(enumerate(soft_masks(0, 3, 9, 11)))}, SMALL)
    state, frame = steps[-1][0], clip(7, 1, 9, 11)[0]
    _, soft = propagation.step(state, frame, None, SMALL)
    _, shuffled = propagation.step(replace(state, recent=state.recent[::-1]), frame, None, SMALL)
    torch.testing.assert_close(shuffled, soft, atol=1e-6, rtol=0)


def test_a_step_leaves_the_state_it_was_given_as_it_was() -> None:
    features = clip(0, 4, 9, 11)
    steps = carry(features, {0: dict(enumerate(soft_masks(0, 3, 9, 11)))}, SMALL)
    _, again = propagation.step(steps[1][0], features[2], None, SMALL)
    assert torch.equal(again, steps[2][1])


def test_early_frames_copy_the_single_best_match_as_published() -> None:
    """At frame 1 every context frame is a copy of frame 0, so the best match fills all places."""
    features, first = clip(0, 2, 9, 11), soft_masks(0, 3, 9, 11)
    many = replace(SMALL, context=20, top_k=10)
    one = replace(many, top_k=1)
    nearest = carried(features, first, replace(one, restrict_reference=True))
    inside = carried(features, first, replace(many, restrict_reference=True))
    torch.testing.assert_close(inside, nearest, atol=1e-5, rtol=0)


def test_places_that_tie_with_the_last_kept_one_all_vote() -> None:
    still = clip(0, 1, 6, 6).expand(4, -1, -1, -1)
    how = replace(DINO, context=3, top_k=1, radius=2)
    contexts = [(still[0], soft_masks(i, 2, 6, 6).flatten(1), True) for i in range(3)]
    expected = sum(labels for _, labels, _ in contexts) / 3
    torch.testing.assert_close(propagate(still[3], contexts, how), expected, atol=1e-5, rtol=0)
    state = carry(still[:3], {0: dict(enumerate(soft_masks(0, 2, 6, 6)))}, how)[-1][0]
    recent = tuple(
        replace(frame, labels=labels) for frame, (_, labels, _) in zip(state.recent, contexts, strict=True)
    )
    reference = replace(state.references[0], frame=recent[0])
    _, soft = propagation.step(replace(state, recent=recent, references=(reference,)), still[3], None, how)
    torch.testing.assert_close(soft.flatten(1), expected, atol=1e-5, rtol=0)


def late_clip() -> tuple[Tensor, Tensor, Tensor]:
    first, late = soft_masks(2, 2, 9, 11), torch.zeros(9, 11)
    late[3:6, 4:8] = 1.0
    return clip(2, 9, 9, 11), first, late


def test_an_object_that_comes_late_is_carried_as_if_the_clip_began_with_it() -> None:
    features, first, late = late_clip()
    steps = carry(features, {0: dict(enumerate(first)), 3: {5: late}}, SMALL)
    alone = carry(features[3:], {0: {0: 1 - late, 5: late}}, SMALL)
    assert steps[2][0].ids == (0, 1)
    assert steps[3][0].ids == (0, 1, 5)
    assert torch.equal(steps[3][1][2], late)
    torch.testing.assert_close(steps[4][1][2], alone[1][1][1], atol=1e-5, rtol=0)


def test_an_object_that_comes_late_leaves_earlier_ones_their_reference() -> None:
    features, first, _ = late_clip()
    empty = torch.zeros(9, 11)
    without = carry(features, {0: dict(enumerate(first))}, SMALL)
    steps = carry(features, {0: dict(enumerate(first)), 3: {5: empty}}, SMALL)
    for (_, expected), (_, soft) in zip(without, steps, strict=True):
        torch.testing.assert_close(soft[:2], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("square", [True, False])
def test_a_late_mask_enters_over_what_was_there(square: bool) -> None:
    features, first, _ = late_clip()
    how = replace(SMALL, square_late_masks=square)
    late = soft_masks(9, 2, 9, 11)[0]
    before = carry(features, {0: dict(enumerate(first))}, how)[3][1]
    soft = carry(features, {0: dict(enumerate(first)), 3: {5: late}}, how)[3][1]
    torch.testing.assert_close(soft[:2], (1 - late) * before)
    torch.testing.assert_close(soft[2], late**2 if square else late)


def test_an_object_that_is_given_again_follows_its_new_mask_only() -> None:
    features, first, late = late_clip()
    steps = carry(features, {0: dict(enumerate(first)), 3: {1: late}}, SMALL)
    assert steps[3][0].ids == (0, 1)
    assert torch.equal(steps[3][1][1], late)
    assert [sorted(reference.ids) for reference in steps[3][0].references] == [[0], [1]]


def test_giving_every_object_again_begins_anew() -> None:
    features, first, late = late_clip()
    steps = carry(features, {0: dict(enumerate(first)), 3: {0: 1 - late, 1: late}}, SMALL)
    anew = carry(features[3:], {0: {0: 1 - late, 1: late}}, SMALL)
    for (_, expected), (_, soft) in zip(anew, steps[3:], strict=True):
        torch.testing.assert_close(soft, expected, atol=1e-5, rtol=0)


def test_frames_before_the_first_mask_have_no_channels() -> None:
    features, first, _ = late_clip()
    steps = carry(features, {2: dict(enumerate(first))}, SMALL)
    begun = carry(features[2:], {0: dict(enumerate(first))}, SMALL)
    assert steps[1][1].shape == (0, 9, 11)
    assert steps[1][0].ids == ()
    torch.testing.assert_close(steps[-1][1], begun[-1][1])


def test_memory_does_not_grow_with_the_clip() -> None:
    features, first, _ = late_clip()
    steps = carry(features.repeat(3, 1, 1, 1), {0: dict(enumerate(first))}, SMALL)
    assert {len(state.recent) for state, _ in steps[3:]} == {SMALL.context}
    assert {len(state.references) for state, _ in steps} == {1}


def test_min_max_over_the_channels_of_a_token_is_stored_for_the_reference_only() -> None:
    how = replace(SMALL, normalise_pixels=True)
    steps = carry(clip(0, 3, 9, 11), {0: dict(enumerate(soft_masks(0, 3, 9, 11)))}, how)
    state, soft = steps[-1]
    torch.testing.assert_close(soft.amax(dim=0), torch.ones(9, 11))
    torch.testing.assert_close(soft.amin(dim=0), torch.zeros(9, 11))
    torch.testing.assert_close(state.recent[0].labels.sum(dim=0), torch.ones(99))
    torch.testing.assert_close(state.references[0].frame.labels.amax(dim=0), torch.ones(99))


def test_another_grid_within_a_clip_is_refused_with_both_sizes() -> None:
    state, _ = propagation.step(propagation.start(), clip(0, 1, 9, 11)[0], {0: torch.ones(9, 11)}, DUL)
    with pytest.raises(ShapeError, match=r"9x12.*9x11"):
        propagation.step(state, clip(0, 1, 9, 12)[0], None, DUL)


def test_a_mask_that_does_not_fit_the_grid_is_refused_with_the_remedy() -> None:
    with pytest.raises(ShapeError, match=r"id 3 .*\(8, 11\).*\(9, 11\).*labels_to_soft"):
        propagation.step(propagation.start(), clip(0, 1, 9, 11)[0], {3: torch.ones(8, 11)}, DUL)


@pytest.mark.parametrize("name, value", [("top_k", 0), ("temperature", 0.0), ("radius", -1.0)])
def test_a_setting_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        replace(DUL, **{name: value})


PUBLISHED = {  # test-time settings of the released code: infer_vos.py, test.py, eval_video_segmentation.py
    "dul": {"top_k": 10, "temperature": 0.05, "context": 20, "radius": 12, "neighbourhood": "disc",
            "repeat_reference": True, "restrict_reference": False, "keep_ties": False,
            "mask_resize": "align_corners"},
    "crw": {"top_k": 10, "temperature": 0.05, "context": 20, "radius": 12, "neighbourhood": "disc",
            "repeat_reference": True, "restrict_reference": False, "keep_ties": False,
            "mask_resize": "half_pixel"},
    "dino": {"top_k": 5, "temperature": 0.1, "context": 7, "radius": 12, "neighbourhood": "square",
             "repeat_reference": False, "restrict_reference": True, "keep_ties": True,
             "mask_resize": "nearest"},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_settings_of_the_released_code(name: str) -> None:
    settings = asdict(tracking_preset(name).propagation)
    assert PUBLISHED[name] == {key: settings[key] for key in PUBLISHED[name]}


@pytest.mark.parametrize("name, preset", [("dul", DUL), ("crw", CRW), ("dino", DINO)])
def test_preset_files_hold_only_differences_and_their_provenance(name: str, preset: Propagation) -> None:
    table = tomllib.loads((files("unspool") / "presets" / f"{name}.toml").read_text("utf-8"))
    assert table["source"].keys() == {"paper", "code", "table", "expected", "command"}
    assert replace(Propagation(), **table["propagation"]) == preset
    default = asdict(Propagation())
    assert all(default[key] != value for key, value in table["propagation"].items())
    assert table["propagation"].keys() <= {field.name for field in fields(Propagation)}
