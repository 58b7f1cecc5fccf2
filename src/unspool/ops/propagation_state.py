"""A propagation's state without features, small enough to be written down; whoever has the frames goes on.

The features are much the larger part (per frame, 512 numbers a token against one an object), and they are
made again from the frames: only those that later frames look at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from unspool.ops import bounds
from unspool.ops.affinity import tiling_for
from unspool.ops.bounds import Tokens, Winners
from unspool.ops.propagation import Frame, Reference, State, start


def without_features(state: State) -> dict[str, Any]:
    """The state without its frames' features, as numbers, lists and tensors that `torch.save` takes."""
    frames = [[frame.time, frame.labels.cpu()] for frame in state.recent]
    references = [[one.frame.time, one.frame.labels.cpu(), sorted(one.ids)] for one in state.references]
    return {
        "ids": list(state.ids),
        "time": state.time,
        "recent": frames,
        "references": references,
        "axes": None if state.axes is None else state.axes.cpu(),
        "winners": None if state.winners is None else [state.winners.time.cpu(), state.winners.token.cpu()],
        "bounds_from": state.bounds_from,
    }


def times_needed(content: Mapping[str, Any]) -> set[int]:
    """Times of the frames whose features `with_features` asks for."""
    return {entry[0] for entry in (*content["recent"], *content["references"])}


def with_features(content: Mapping[str, Any], features: Mapping[int, Float[Tensor, "c h w"]]) -> State:
    """The state that `without_features` was given, once more; `features`: of the frames of `times_needed`."""
    if not content["ids"]:
        return start()
    _, height, width = next(iter(features.values())).shape
    device = next(iter(features.values())).device
    tiling = tiling_for(height, width, device)
    axes = None if content["axes"] is None else content["axes"].to(device)
    tokens = {}
    for time, one in features.items():
        cut = tiling.cut(one)
        tokens[time] = Tokens(cut, cut[..., :0]) if axes is None else bounds.sketched(cut, axes)
    winners = content["winners"]
    return State(
        ids=tuple(content["ids"]),
        time=content["time"],
        recent=tuple(Frame(time, tokens[time], labels.to(device)) for time, labels in content["recent"]),
        references=tuple(
            Reference(Frame(time, tokens[time], labels.to(device)), frozenset(ids))
            for time, labels, ids in content["references"]
        ),
        tiling=tiling,
        axes=axes,
        winners=None if winners is None else Winners(*(part.to(device) for part in winners)),
        bounds_from=content["bounds_from"],
    )
