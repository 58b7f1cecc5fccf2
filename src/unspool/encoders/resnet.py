"""ResNet encoders: ResNet-18 with the strides of DUL and CRW, ResNet-50 with a dilated last stage.

The networks are torchvision's; what changes is where they stop halving the image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, resnet18, resnet50

from unspool.encoders.images import IMAGENET_STD, normalised, offered
from unspool.errors import UsageError

STAGES = ("layer1", "layer2", "layer3", "layer4")


def resnet18_stride8(padding: Literal["zeros", "reflect"] = "zeros", width: int = 64) -> ResNet:
    """Torchvision's ResNet-18 with every stride of layer3 and layer4 set to 1, without its classifier.

    `padding="reflect"` is CRW's `scratch` encoder; `width`: channels of the first stage, the last has eight
    times as many. Initialised by torch's generator as torchvision does.
    Source: DUL models/resnet18.py; CRW code/resnet.py.
    """
    network = resnet18()
    if width != 64:
        _narrow(network, width / 64)
    for stage in (network.layer3, network.layer4):
        for module in stage.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.padding != (0, 0):
            module.padding_mode = padding
    return _without_classifier(network)


def _narrow(network: nn.Module, share: float) -> None:
    """Every layer anew with this share of its channels, those of the image excepted."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.BatchNorm2d):
                setattr(parent, name, nn.BatchNorm2d(round(share * layer.num_features)))
            elif isinstance(layer, nn.Conv2d):
                entering = layer.in_channels if layer.in_channels == 3 else round(share * layer.in_channels)
                leaving = round(share * layer.out_channels)
                (kernel, _), (stride, _), padding = layer.kernel_size, layer.stride, layer.padding
                narrow = nn.Conv2d(entering, leaving, kernel, stride, padding, bias=False)  # type: ignore[arg-type]
                nn.init.kaiming_normal_(narrow.weight, mode="fan_out", nonlinearity="relu")
                setattr(parent, name, narrow)


def resnet50_stride16() -> ResNet:
    """Torchvision's ResNet-50 whose last stage dilates instead of halving: 28x28 at 448 px."""
    return _without_classifier(resnet50(replace_stride_with_dilation=[False, False, True]))


def _without_classifier(network: ResNet) -> ResNet:
    del network.avgpool, network.fc
    return network


class DulHead(nn.Module):
    """DUL's embedding `emb_q`: 1x1 convolution, batch norm, ReLU, 1x1 convolution to K channels."""

    def __init__(self, channels: int = 512, dim: int = 128) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        """`[b, channels, h, w]` to `[b, dim, h, w]`."""
        embedding: Tensor = self.conv2(self.relu(self.bn1(self.conv1(features))))
        return embedding


class ResNetEncoder(nn.Module):
    """A frozen ResNet: `tokens` is its last stage, every stage is offered, and `head` where it has one."""

    multiple = 1  # any input size: the grid is rounded up

    def __init__(
        self,
        network: ResNet,
        *,
        name: str,
        head: nn.Module | None = None,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.name, self.std = name, std
        self.network, self.head = network, head
        self.stages = tuple(stage for stage in STAGES if hasattr(network, stage))
        self.offers = ("tokens", *self.stages, *(("head",) if head is not None else ()))
        with torch.no_grad():
            probe = self.eval()(torch.zeros(1, 3, 64, 64))["tokens"]
        self.dim, self.patch = probe.shape[1], 64 // probe.shape[3]

    def forward(self, images: Tensor, want: tuple[str, ...] = ("tokens",)) -> dict[str, Tensor]:
        """Maps `[b, c, h/stride, w/stride]` (rounded up) of images `[b, 3, h, w]`, uint8 or float in 0..1."""
        offered(want, self.offers, self.name)
        stages: OrderedDict[str, Tensor] = OrderedDict()
        net = self.network
        features = normalised(images, self.std, net.conv1.weight)
        features = net.maxpool(net.relu(net.bn1(net.conv1(features))))
        for stage in self.stages:
            features = stages[stage] = getattr(net, stage)(features)
            if {"tokens", "head"}.isdisjoint(want) and set(want) <= set(stages):
                break
        found = {"tokens": features, **stages}
        if "head" in want and self.head is not None:
            found["head"] = self.head(features)
        return {name: found[name] for name in want}

    def tail(self, count: int) -> list[nn.Module]:
        """The last stage, whatever the `count` of blocks that a ViT would be asked for."""
        return [getattr(self.network, self.stages[-1])]

    def begin(self, images: Tensor, count: int) -> tuple[Tensor, Any]:
        """What the last stage reads, and what `end` needs beside: nothing."""
        return self.forward(images, want=(self.stages[-2],))[self.stages[-2]], None

    def end(self, begun: Tensor, beside: Any, tail: Sequence[nn.Module]) -> Tensor:
        """`tokens` of all or some of the images begun, through this last stage (or a copy of it)."""
        for stage in tail:
            begun = stage(begun)
        return begun

    def bytes_per_image(self, height: int, width: int) -> int:
        """About what one image takes at its widest moment: five maps of the first convolution's size."""
        pixels = (height // 2 + 1) * (width // 2 + 1)
        stem = self.network.conv1
        return int(5 * stem.out_channels * pixels * stem.weight.element_size())


def random_resnet(architecture: str, seed: int, std: tuple[float, float, float]) -> ResNetEncoder:
    """A ResNet that has learnt nothing: `resnet18` (stride 8) or `resnet50` (stride 16), from `seed`."""
    makers = {"resnet18": resnet18_stride8, "resnet50": resnet50_stride16}
    if architecture not in makers:
        raise UsageError(f"random-{architecture}: there are random-resnet18 and random-resnet50")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = makers[architecture]()
    return ResNetEncoder(network, name=f"random-{architecture}", std=std)
