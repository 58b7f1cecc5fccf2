"""Augmentation of one clip by Pillow and torchvision, image by image, from a recorded draw."""

import numpy as np
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torch import Tensor

from unspool.data.augment import BRIGHTNESS, CONTRAST, HUE, SATURATION, Draws

ADJUST = {
    BRIGHTNESS: tv.adjust_brightness,
    CONTRAST: tv.adjust_contrast,
    SATURATION: tv.adjust_saturation,
    HUE: tv.adjust_hue,
}


def placed(image: np.ndarray, draws: Draws, number: int) -> np.ndarray:
    """Resize, crop (zeros beyond the edge), resize, flip of one image [H, W, 3] by Pillow."""
    resized, (top, left, height, width) = draws.resized[number].tolist(), draws.box[number].tolist()
    picture = Image.fromarray(image).resize((resized[1], resized[0]), Image.Resampling.BILINEAR)
    picture = picture.crop((left, top, left + width, top + height))
    if (height, width) != draws.how.size:
        picture = picture.resize((draws.how.size[1], draws.how.size[0]), Image.Resampling.BILINEAR)
    if draws.flip[number]:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(picture)


def recoloured(image: Tensor, draws: Draws, number: int) -> Tensor:
    """Jitter, grey, blur of one image [3, H, W] in 0..1 by torchvision."""
    for change in draws.order[number].tolist():
        if change >= 0:
            image = ADJUST[change](image, draws.factors[number, change].item())
    if draws.grey[number]:
        image = tv.rgb_to_grayscale(image, num_output_channels=3)
    if sigma := draws.sigma[number].item():
        rows, columns = draws.how.blur_taps
        image = tv.gaussian_blur(image, [columns, rows], [sigma])
    return image


def normalised(image: Tensor, valid: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return torch.where(valid, tv.normalize(image, list(mean), list(std)), 0.0)
