"""Sinkhorn and the Feature-Forwarder against SMSD75/Timetuning."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import normalize

from unspool.ops import propagation
from unspool.ops.forwarding import Forwarder, forward_maps
from unspool.ops.sinkhorn import sinkhorn

Golden = Callable[[str], dict[str, np.ndarray]]


def numbers(file: dict[str, np.ndarray], name: str) -> list[str]:
    found = [key.removeprefix(name) for key in file if key.removeprefix(name).isdigit()]
    assert found
    return found


def test_sinkhorn_equals_the_published_code(golden: Golden) -> None:
    file = golden("timet/sinkhorn")
    for case in numbers(file, "scores"):
        epsilon, iterations = file[f"params{case}"]
        found = sinkhorn(torch.tensor(file[f"scores{case}"]), float(epsilon), int(iterations))
        torch.testing.assert_close(found, torch.tensor(file[f"q{case}"]), atol=1e-5, rtol=0)


def test_the_feature_forwarder_equals_the_published_code(golden: Golden) -> None:
    file = golden("timet/feature_forwarder")
    for case in numbers(file, "feats"):
        context, window, top_k = (int(number) for number in file[f"params{case}"])
        how = Forwarder(context=context, window=window, top_k=top_k)
        first = torch.tensor(file[f"seg{case}"])
        grid = (first.shape[2], first.shape[3])
        maps = first.flatten(2).transpose(1, 2)[:, None]
        found = forward_maps(torch.tensor(file[f"feats{case}"])[None], maps, grid, how)[0]
        found = found.transpose(1, 2).unflatten(2, grid)
        torch.testing.assert_close(found, torch.tensor(file[f"out{case}"]), atol=1e-5, rtol=0)


def test_label_propagation_with_these_settings_is_the_feature_forwarder(golden: Golden) -> None:
    file = golden("timet/feature_forwarder")
    for case in numbers(file, "feats"):
        context, window, top_k = (int(number) for number in file[f"params{case}"])
        first = torch.tensor(file[f"seg{case}"])[0]
        grid = tuple(first.shape[1:])
        how = replace(propagation.DINO, context=context, top_k=top_k, radius=window or max(grid))
        features = normalize(torch.tensor(file[f"feats{case}"]), dim=2).transpose(1, 2).unflatten(2, grid)
        state, found = propagation.start(), []
        for time, frame in enumerate(features):
            given = dict(enumerate(first)) if time == 0 else None
            state, soft = propagation.step(state, frame, given, how)
            found.append(soft)
        torch.testing.assert_close(
            torch.stack(found[1:]), torch.tensor(file[f"out{case}"]), atol=1e-5, rtol=0
        )
