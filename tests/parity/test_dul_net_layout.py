"""DUL's network against the official one: layout of the weights, and features of a deterministic input."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from unspool.encoders.resnet import DulHead, ResNetEncoder, resnet18_stride8

Golden = Callable[[str], dict[str, np.ndarray]]


def spread(a: np.ndarray) -> np.ndarray:
    """h(a) = 2(a - floor(a)) - 1 of the recordings' README."""
    return 2 * (a - np.floor(a)) - 1


def deterministic_state(keys: list[str], shapes: list[str]) -> dict[str, torch.Tensor]:
    state = {}
    for j, (key, text) in enumerate(zip(keys, shapes, strict=True)):
        shape = tuple(int(n) for n in text.split(",") if n)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros((), dtype=torch.int64)
            continue
        i = np.arange(int(np.prod(shape)), dtype=np.float64)
        s = spread(43758.5453 * np.sin(12.9898 * i + 78.233 * j + 1))
        if key.endswith("running_mean"):
            values = 0.1 * s
        elif key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
            values = 1 + 0.25 * s
        elif len(shape) == 1:
            values = 0.1 * s
        else:
            values = s * np.sqrt(6 / np.prod(shape[1:]))
        state[key] = torch.from_numpy(values.astype(np.float32)).reshape(shape)
    return state


def deterministic_input(shape: tuple[int, ...], phase: float) -> torch.Tensor:
    i = np.arange(int(np.prod(shape)), dtype=np.float64)
    noise = spread(43758.5453 * np.sin(12.9898 * np.floor(i / 4) + 78.233 * phase + 1))
    return torch.from_numpy((np.sin(0.013 * i + phase) + noise).astype(np.float32)).reshape(shape)


@pytest.fixture(scope="module")
def encoder(golden: Golden) -> ResNetEncoder:
    file = golden("dul/net_layout")
    state = deterministic_state(file["keys"].tolist(), file["shapes"].tolist())
    network, head = resnet18_stride8(), DulHead()
    for module, prefix in ((network, "fast_net.backbone."), (head, "fast_net.emb_q.")):
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        module.load_state_dict(own, strict=True)
    return ResNetEncoder(network, name="golden", head=head).eval()


def test_names_shapes_and_order_of_the_weights(golden: Golden) -> None:
    file = golden("dul/net_layout")
    found = [(f"fast_net.backbone.{k}", v) for k, v in resnet18_stride8().state_dict().items()]
    found += [(f"fast_net.emb_q.{k}", v) for k, v in DulHead().state_dict().items()]
    assert [k for k, _ in found] == file["keys"].tolist()
    assert [",".join(map(str, v.shape)) for _, v in found] == file["shapes"].tolist()
    numbers = sum(p.numel() for m in (resnet18_stride8(), DulHead()) for p in m.parameters())
    assert numbers == int(file["n_params"])


@pytest.mark.parametrize(("name", "want"), [("res3", "layer3"), ("res4", "layer4"), ("key", "head")])
@torch.inference_mode()
def test_features(golden: Golden, encoder: ResNetEncoder, name: str, want: str) -> None:
    file = golden("dul/net_layout")
    height, width = file["input_hw"].tolist()
    images = deterministic_input((1, 3, height, width), float(file["phase"]))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    raw = encoder(images * std + mean, want=(want,))[want]  # the recording's input is normalised already
    assert list(raw.shape) == file[f"{name}_shape"].tolist()
    step = max(1, raw.shape[1] // 16)
    raw_slice = raw[0, ::step, ::3, ::3].numpy()
    assert (
        np.abs(raw_slice - file[f"{name}_raw_slice"]).max() <= 1e-5 * np.abs(file[f"{name}_raw_slice"]).max()
    )
    unit = torch.nn.functional.normalize(raw, dim=1)
    assert np.abs(unit[0, ::step, ::3, ::3].numpy() - file[f"{name}_slice"]).max() <= 1e-5
    for measure, value in (("mean", unit.mean()), ("absmean", unit.abs().mean()), ("std", unit.std())):
        assert float(value) == pytest.approx(float(file[f"{name}_{measure}"]), abs=1e-5)
