"""TimeT's views and frame numbers against SMSD75/Timetuning."""

import random
from collections.abc import Callable

import numpy as np
import torch

from unspool.data import augment, sampling
from unspool.data.augment import Augmentation, Draws

Golden = Callable[[str], dict[str, np.ndarray]]
STD = (0.228, 0.224, 0.225)  # decision 12: the published code's


def test_views_of_frames_and_labels_equal_the_published_ones(golden: Golden) -> None:
    file = golden("timet/augmentation")
    size = file["out"].shape[-2:]
    how = Augmentation(size=size, crop="box", resizing="pillow")
    draws = Draws(
        how=how,
        frame=torch.tensor([file["frames"].shape[1:3]]),
        resized=torch.tensor(file["after_resize"])[None],
        box=torch.tensor(file["crop_ijhw"])[None],
        flip=torch.tensor([False]),
        factors=torch.ones(1, 4),
        order=torch.full((1, 4), -1),
        grey=torch.tensor([False]),
        sigma=torch.zeros(1),
    )
    views = augment.place([torch.tensor(file["frames"]).permute(0, 3, 1, 2)], draws)
    found = augment.normalise(augment.recolour(views.frames, draws), views.valid, std=STD)
    torch.testing.assert_close(found[0], torch.tensor(file["out"]), atol=1e-5, rtol=0)
    labels = augment.place_labels([torch.tensor(file["ann"])], draws)
    assert np.array_equal(labels[0].numpy(), file["out_ann"][:, 0])


def test_the_short_side_gives_the_published_size(golden: Golden) -> None:
    file = golden("timet/augmentation")
    short = int(file["after_resize"].min())
    how = Augmentation(short_side=(short, short))
    draws = augment.draw(how, [file["frames"].shape[1:3]], [np.random.default_rng(0)])
    assert draws.resized[0].tolist() == file["after_resize"].tolist()


class PythonsDraws:
    """The calls that sampling makes of its generator, answered by Python's, as the published code asks it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def integers(self, low: int, high: int, *, endpoint: bool) -> int:
        assert endpoint
        return self.random.randint(low, high)

    def choice(self, length: int, count: int, *, replace: bool) -> np.ndarray:
        if replace:
            return np.array([self.random.randrange(length) for _ in range(count)])
        return np.array(self.random.sample(range(length), count))


def test_frame_numbers_are_the_published_ones(golden: Golden) -> None:
    file = golden("timet/augmentation")
    modes = set()
    for key in file:
        if not key.startswith("idx_") or key == "idx_seed_rule":
            continue
        _, mode, length, frames = key.split("_")
        modes.add(mode)
        rng = PythonsDraws(int(file["idx_seed_rule"]) + int(length))
        rules = {
            "uniform": sampling.uniform,
            "dense": lambda n, t, rng: sampling.regular(n, t, 1, rng),
            "regular": lambda n, t, rng: sampling.regular(n, t, 3, rng),
        }
        found = rules[mode](int(length), int(frames), rng)
        assert found.tolist() == file[key].tolist(), key
    assert modes == {"uniform", "dense", "regular"}
