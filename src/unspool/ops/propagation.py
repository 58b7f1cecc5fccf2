"""Carry labels from frame to frame along the affinities of their features.

One operator for the tracking of DUL, CRW and DINO (Araslanov et al. 2021, supplement C; Jabri et al. 2020;
Caron et al. 2021) and for TimeT's Feature-Forwarder (Salehi et al. 2023, Eq. 3-5). The label of a token is
the mean of the soft labels of its `top_k` most similar tokens among the reference and the last `context`
frames, weighted by softmax(similarity / temperature).

The state is passed in and returned, never changed. It holds the features of at most `context` frames and of
one reference per time at which ids appeared: memory does not grow with the clip.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn.functional import pad

from unspool.errors import ShapeError, UsageError
from unspool.ops import bounds
from unspool.ops.affinity import (
    SCORE_BYTES,
    Matches,
    Tiling,
    Window,
    best_anywhere,
    best_in_window,
    tiling_for,
)
from unspool.ops.bounds import Tokens, Winners
from unspool.ops.resize import Rule, labels_to_soft, soft_to_labels

__all__ = [
    "CRW",
    "DINO",
    "DUL",
    "Frame",
    "Propagation",
    "Reference",
    "State",
    "labels_to_soft",
    "soft_to_labels",
    "start",
    "step",
]


@dataclass(frozen=True)
class Propagation:
    """How labels travel; the defaults are DUL's (infer_vos.py, labelprop/crw.py)."""

    top_k: int = 10  # keys kept per query, >= 1, jointly over all frames
    temperature: float | int = 0.05  # tau: softmax scale on the cosine similarity, > 0
    context: int = 20  # recent frames remembered besides the reference, >= 0
    repeat_reference: bool = True  # copies of the reference stand in for the frames missing before it
    neighbourhood: Literal["disc", "square"] = "disc"  # disc: distance < radius; square: |dy|, |dx| <= radius
    radius: float | int = 12.0  # feature cells, > 0
    restrict_reference: bool = False  # whether the window holds for the reference too
    keep_ties: bool = False  # whether keys as similar as the k-th are kept beyond k
    normalise_pixels: bool = False  # CRW's norm_mask: min-max over the channels of every token handed out
    square_late_masks: bool = True  # a soft mask G that comes later enters as g*G, as published, not as G
    mask_resize: Rule = "align_corners"  # labels to the feature grid and back, see `ops/resize.py`

    def __post_init__(self) -> None:
        for name, valid in (
            ("top_k", self.top_k >= 1),
            ("temperature", self.temperature > 0),
            ("context", self.context >= 0),
            ("radius", self.radius > 0),
            ("neighbourhood", self.neighbourhood in ("disc", "square")),
            ("mask_resize", self.mask_resize in ("align_corners", "half_pixel", "nearest")),
        ):
            if not valid:
                raise UsageError(f"propagation.{name} = {getattr(self, name)!r} is out of range")

    @property
    def window(self) -> Window:
        """Where a query may look."""
        return Window(self.neighbourhood, self.radius)


DUL = Propagation()
CRW = replace(DUL, mask_resize="half_pixel")
DINO = Propagation(
    top_k=5,
    temperature=0.1,
    context=7,
    repeat_reference=False,
    neighbourhood="square",
    restrict_reference=True,
    keep_ties=True,
    mask_resize="nearest",
)


@dataclass(frozen=True)
class Frame:
    """A frame that may be looked at: its features and its soft labels."""

    time: int  # frames since the first annotated one
    tokens: Tokens
    labels: Float[Tensor, "k n"]


@dataclass(frozen=True)
class Reference:
    """The frame where `ids` were last given."""

    frame: Frame
    ids: frozenset[int]


@dataclass(frozen=True)
class State:
    """All that later frames need to know of earlier ones."""

    ids: tuple[int, ...] = ()  # of the channels, in the order of their appearance
    time: int = 0  # of the frame to come
    recent: tuple[Frame, ...] = ()  # at most `context`, oldest first
    references: tuple[Reference, ...] = ()  # by time
    tiling: Tiling | None = None
    axes: Float[Tensor, "c s"] | None = None  # of the sketches, where bounds may pay
    winners: Winners | None = None  # of the last frame
    bounds_from: int = 0  # time from which bounds are tried: they rest where they did not pay


def start() -> State:
    """The state before the first frame."""
    return State()


@torch.no_grad()
def step(
    state: State,
    features: Float[Tensor, "c h w"],
    annotation: Mapping[int, Float[Tensor, "_ _"]] | None,
    how: Propagation,
    *,
    memory: int = SCORE_BYTES,
) -> tuple[State, Float[Tensor, "k h w"]]:
    """Soft labels of the next frame, channel i for `ids[i]` of the returned state.

    `features`: unit vectors along c. `annotation`: soft masks [h, w] of the ids given at this frame, if any;
    an id that is known already is corrected from here on. Frames before the first annotation have no
    channels. Each frame's features enter once; no gradient flows. `memory`: bytes of similarities held at
    once. Raises ShapeError if the grid changes between frames, or an annotation does not fit it.
    Source: DUL infer_vos.py: step_seg; labelprop/crw.py.
    """
    _, height, width = features.shape
    if not state.ids and not annotation:
        return state, features.new_zeros((0, height, width), dtype=torch.float32)
    tiling = tiling_for(height, width, features.device)
    _check_shapes(state, features, annotation or {}, tiling)
    state, tokens = _sketch(state, tiling.cut(features), tiling)
    state, labels = _carry(state, tokens, tiling, how, memory)
    state = _with_ids(state, annotation or {})
    labels = pad(labels, (0, 0, 0, len(state.ids) - len(labels)))
    if annotation:
        labels = _insert(labels, state, annotation, how)
    frame = Frame(state.time, tokens, labels)
    shown = _min_max_of_tokens(labels) if how.normalise_pixels else labels
    reference = Reference(replace(frame, labels=shown), frozenset(annotation or ()))
    return _remember(state, frame, reference, tiling, how), shown.view(-1, height, width)


def _check_shapes(
    state: State, features: Float[Tensor, "c h w"], annotation: Mapping[int, Tensor], tiling: Tiling
) -> None:
    if state.tiling is not None and state.tiling != tiling:
        raise ShapeError(
            f"features are {tiling.height}x{tiling.width}, those of earlier frames were "
            f"{state.tiling.height}x{state.tiling.width}; one clip has one grid"
        )
    for id_, mask in annotation.items():
        if mask.shape != features.shape[1:]:
            raise ShapeError(
                f"the mask of id {id_} is {tuple(mask.shape)}, the feature grid {tuple(features.shape[1:])}; "
                "resize it with labels_to_soft"
            )


def _sketch(state: State, features: Float[Tensor, "tiles cells c"], tiling: Tiling) -> tuple[State, Tokens]:
    """The axes of the sketches are those of the first frame; GPUs make all products faster than some."""
    many = tiling.height * tiling.width >= bounds.FEWEST_TOKENS
    if state.axes is None and many and features.device.type == "cpu" and features.dtype == torch.float32:
        state = replace(state, axes=bounds.principal_axes(features, max(1, features.shape[-1] // 4 - 1)))
    if state.axes is None:
        return state, Tokens(features, features[..., :0])
    return state, bounds.sketched(features, state.axes)


def _carry(
    state: State, queries: Tokens, tiling: Tiling, how: Propagation, memory: int
) -> tuple[State, Float[Tensor, "k n"]]:
    """Each id follows the context of its own reference; the labels stored there are those of all ids."""
    carried = queries.features.new_zeros((len(state.ids), tiling.height * tiling.width), dtype=torch.float32)
    state, found = _search(state, queries, tiling, how, memory)
    for reference in state.references:
        channels = [i for i, id_ in enumerate(state.ids) if id_ in reference.ids]
        carried[channels] = _vote(found[reference.frame.time], channels, carried.shape[1], how)
    return state, carried


@dataclass(frozen=True)
class _Found:
    """Matches in some frames, and how often each of these frames stands in the context of a reference."""

    matches: Matches
    frames: tuple[Frame, ...]
    copies: tuple[int, ...]


def _search(
    state: State, queries: Tokens, tiling: Tiling, how: Propagation, memory: int
) -> tuple[State, dict[int, list[_Found]]]:
    """Matches of a frame's tokens by time of the reference.

    Frames that the same references look at are searched together, and each frame once, however many
    references there are.
    """
    if not state.references:
        return state, {}
    state, floors = _floors(state, queries, tiling, how)
    together: dict[tuple[bool, ...], list[tuple[Frame, tuple[int, ...]]]] = defaultdict(list)
    times = [reference.frame.time for reference in state.references]
    windowed = _windowed(state, how)
    for candidate in windowed.values():
        copies = tuple(_copies(candidate.time, time, state.time, how) for time in times)
        together[tuple(count > 0 for count in copies)].append((candidate, copies))

    found: dict[int, list[_Found]] = {time: [] for time in times}
    k = how.top_k + (len(windowed) if how.keep_ties else 0)  # a place that stands still ties in every frame
    for sees, members in together.items():
        readers = [i for i, seen in enumerate(sees) if seen]
        if not readers:
            continue
        frames = tuple(member for member, _ in members)
        floor = torch.stack([floors[times[i]] for i in readers]).amin(dim=0) if floors else None
        matches = _best_in_window(frames, queries, tiling, how.window, k, floor=floor, memory=memory)
        for i in readers:
            found[times[i]].append(_Found(matches, frames, tuple(copies[i] for _, copies in members)))
    if not how.restrict_reference:
        for reference in state.references:
            others = found[reference.frame.time]
            floor = floors.get(reference.frame.time)
            matches = _best_in_reference(reference, others, queries, tiling, k, floor=floor, memory=memory)
            others.append(_Found(matches, (reference.frame,), (1,)))
    return _with_winners(state, found[times[0]], how), found


def _windowed(state: State, how: Propagation) -> dict[int, Frame]:
    """Frames of which only the window is seen, by time."""
    frames = {frame.time: frame for frame in state.recent}
    if how.restrict_reference:
        frames |= {reference.frame.time: reference.frame for reference in state.references}
    return frames


def _floors(
    state: State, queries: Tokens, tiling: Tiling, how: Propagation
) -> tuple[State, dict[int, Float[Tensor, " n"]]]:
    """A floor under the k-th best similarity, by time of the reference; none where bounds would not pay."""
    if state.axes is None or state.time < state.bounds_from or not state.recent:
        return state, {}
    last = state.recent[-1]
    likely = bounds.candidates(queries, last.tokens, last.time, state.winners, tiling, how.top_k)
    pool = _windowed(state, how) | {one.frame.time: one.frame for one in state.references}
    tokens = [frame.tokens for frame in pool.values()]
    inside = _inside(likely.token, tiling, how.window)
    floors = {}
    for reference in state.references:
        number = torch.full_like(likely.token, -1)
        for i, time in enumerate(pool):
            if time == reference.frame.time and not how.restrict_reference:
                number[likely.time == time] = i
            elif _copies(time, reference.frame.time, state.time, how):
                number[(likely.time == time) & inside] = i
        floors[reference.frame.time] = bounds.floor_of_candidates(
            queries, tokens, number, likely.token, tiling, k=how.top_k
        )
    lowest = torch.stack(list(floors.values())).amin(dim=0)
    if bounds.open_share(queries, tokens, tiling, how.window, floor=lowest) > bounds.WORTHWHILE:
        return replace(state, bounds_from=state.time + bounds.REST), {}
    return state, floors


def _inside(token: Integer[Tensor, "n m"], tiling: Tiling, window: Window) -> Bool[Tensor, "n m"]:
    """Whether the window of token i holds `token[i]`."""
    query = torch.arange(len(token), device=token.device)[:, None]
    return window.holds(
        token // tiling.width - query // tiling.width, token % tiling.width - query % tiling.width
    )


def _best_in_window(
    frames: Sequence[Frame],
    queries: Tokens,
    tiling: Tiling,
    window: Window,
    k: int,
    *,
    floor: Tensor | None,
    memory: int,
) -> Matches:
    if floor is None:
        features = [frame.tokens.features for frame in frames]
        return best_in_window(queries.features, features, tiling, window, k, memory=memory)
    return bounds.bounded_in_window(
        queries, [frame.tokens for frame in frames], tiling, window, k, floor=floor
    )


def _best_in_reference(
    reference: Reference,
    windowed: list[_Found],
    queries: Tokens,
    tiling: Tiling,
    k: int,
    *,
    floor: Tensor | None,
    memory: int,
) -> Matches:
    """Matches anywhere in the reference, no worse than the k best of the other frames where bounds pay."""
    tokens = reference.frame.tokens
    if floor is None:
        return best_anywhere(queries.features, tokens.features, tiling, k, memory=memory)
    for found in windowed:
        if found.matches.similarity.shape[1] == k:
            floor = floor.maximum(found.matches.similarity[:, -1])
    return bounds.bounded_anywhere(queries, tokens, tiling, k, floor=floor)


def _with_winners(state: State, found: list[_Found], how: Propagation) -> State:
    if state.axes is None:
        return state
    similarity = torch.cat([f.matches.similarity for f in found], dim=1)
    time = torch.cat(
        [torch.tensor([frame.time for frame in f.frames])[f.matches.frame] for f in found], dim=1
    )
    token = torch.cat([f.matches.token for f in found], dim=1)
    best = similarity.topk(min(how.top_k, similarity.shape[1]), dim=1)[1]
    return replace(state, winners=Winners(time.gather(1, best), token.gather(1, best)))


def _copies(time: int, reference: int, now: int, how: Propagation) -> int:
    """How often the frame of `time` stands in the windowed context of a reference.

    The context is max(t, reference) for the last `context` times t: a young reference fills the places of
    the frames before it. Copies are counted, not searched again.
    """
    recent = now - how.context <= time
    if time > reference:
        return int(recent)
    if time < reference:
        return 0
    repeated = max(0, reference - (now - how.context) + 1) if how.repeat_reference else 0
    return repeated + int(how.restrict_reference)


def _vote(found: list[_Found], channels: list[int], tokens: int, how: Propagation) -> Float[Tensor, "k n"]:
    """The weighted mean of the labels that the matches carry; rows of weights sum to 1, and stay unscaled."""
    similarity = torch.cat([f.matches.similarity for f in found], dim=1)
    copies = torch.cat(
        [torch.tensor(f.copies, device=similarity.device)[f.matches.frame] for f in found], dim=1
    )
    weights = _weights(similarity, copies, how)

    stored = [_channels(frame.labels, channels) for f in found for frame in f.frames]
    first = accumulate((len(f.frames) for f in found), initial=0)
    sources = [(n + f.matches.frame) * tokens + f.matches.token for f, n in zip(found, first, strict=False)]
    labels = torch.cat(stored, dim=1)[:, torch.cat(sources, dim=1)]
    return torch.einsum("knm,nm->kn", labels, weights)


def _channels(labels: Float[Tensor, "k n"], channels: list[int]) -> Float[Tensor, "wanted n"]:
    """A frame seen before an id was known holds nothing of it."""
    missing = max(channels, default=0) + 1 - len(labels)
    return pad(labels, (0, 0, 0, max(0, missing)))[channels]


def _weights(
    similarity: Float[Tensor, "n m"], copies: Integer[Tensor, "n m"], how: Propagation
) -> Float[Tensor, "n m"]:
    """Softmax over the k most similar, where a key with c copies takes c of the k places. Rows sum to 1.

    In float32: 1/0.05 magnifies rounding twentyfold.
    """
    ranked, order = similarity.sort(dim=1, descending=True, stable=True)
    ranked_copies = copies.gather(1, order)
    before = ranked_copies.cumsum(1) - ranked_copies
    taken = (how.top_k - before).clamp_(min=0).minimum(ranked_copies)
    if how.keep_ties:
        least = ranked.masked_fill(taken == 0, float("inf")).amin(dim=1, keepdim=True)
        taken = torch.where(ranked >= least, ranked_copies, 0)
    weights = taken * ((ranked - ranked[:, :1]) / how.temperature).exp()
    return torch.zeros_like(weights).scatter_(1, order, weights / weights.sum(dim=1, keepdim=True))


def _insert(
    carried: Float[Tensor, "k n"], state: State, annotation: Mapping[int, Tensor], how: Propagation
) -> Float[Tensor, "k n"]:
    """What is given replaces what was carried, softly: m := (1 - g) m + g G, where g = sum of G."""
    given = torch.zeros_like(carried)
    channels = [state.ids.index(id_) for id_ in annotation]
    given[channels] = torch.stack([mask.flatten().to(carried) for mask in annotation.values()])
    if not state.references:
        return given
    cover = given.sum(dim=0)
    kept = carried.index_fill(0, torch.tensor(channels, device=carried.device), 0.0)
    return (1 - cover) * kept + (cover * given if how.square_late_masks else given)


def _min_max_of_tokens(labels: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
    """Every token's channels stretched to 0..1. Source: CRW code/test.py, norm_mask."""
    lowest, highest = labels.amin(dim=0), labels.amax(dim=0)
    return (labels - lowest) / (highest - lowest).clamp_(min=torch.finfo(labels.dtype).tiny)


def _with_ids(state: State, annotation: Iterable[int]) -> State:
    return replace(state, ids=(*state.ids, *(id_ for id_ in annotation if id_ not in state.ids)))


def _remember(state: State, frame: Frame, reference: Reference, tiling: Tiling, how: Propagation) -> State:
    """The frame joins the recent ones; where ids are given it becomes their reference, as it was shown.

    (CRW's norm_mask works in place on the first frame's labels: its reference is normalised, the copies
    among the recent frames are not.)
    """
    older = (replace(one, ids=one.ids - reference.ids) for one in state.references)
    references = tuple(one for one in (*older, reference) if one.ids)
    recent = (*state.recent, frame)[-how.context :] if how.context else ()
    return replace(state, time=state.time + 1, recent=recent, references=references, tiling=tiling)
