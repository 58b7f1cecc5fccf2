"""Feeding a training: frames a second decoded, kept and augmented, beside the plain form and the floor.

    python benchmarks/loader.py [FOLDER OF VIDEOS]

Without a folder, ten textured videos of 640x360 are made up; of many videos the first 20 are read. Each line
is the best of several rounds. Clips are DUL's (16 of 5 frames, gap 2), at most 256 px at the short side. A
clip from a video file costs all frames from its key frame on, so random clips are slower than whole videos;
the store is the way out. Floors: a bare PyAV loop to RGB for decoding, a copy of the same bytes for the
store. Augmentation stands beside torchvision's v2 functions image by image, with the same drawn parameters.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from time import perf_counter

import av
import numpy as np
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torch import Tensor

from unspool.data.augment import Augmentation, Draws, draw, normalise, place, recolour
from unspool.data.clips import ClipBatch, Clips, Decoded, FrameSource, OnDevice, Stored, load_batches
from unspool.data.footage import Footage
from unspool.data.frames import Decoder, store_frames
from unspool.data.index import index_videos
from unspool.data.sampling import Sampling
from unspool.video import VideoWriter

BATCH, FRAMES, SIDE, ROUNDS, VIDEOS = 16, 5, 256, 3, 20
HOW = Sampling(FRAMES, "permuted", gap=2)
PLAIN = Augmentation(short_side=(256, 256))
RICH = Augmentation(short_side=(256, 320), jitter=0.8, grey=0.2, blur=0.5)
ADJUST = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


def made_up(folder: Path, height: int = 360, width: int = 640, frames: int = 100) -> Path:
    rng = np.random.default_rng(0)
    for number in range(10):
        coarse = rng.integers(0, 255, (height // 8 + 20, width // 8 + 30, 3), np.uint8)
        size = (width + 240, height + 160)
        texture = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        times = [Fraction(k, 24) for k in range(frames)]
        with VideoWriter(folder / f"{number}.mp4", height=height, width=width, times=times) as output:
            for k in range(frames):
                output.write(np.ascontiguousarray(texture[k : k + height, 2 * k : 2 * k + width]))
    return folder


def best(work: Callable[[], int], rounds: int = ROUNDS) -> float:
    """Most of what `work` counts in a second."""
    rates = []
    for _ in range(rounds):
        start = perf_counter()
        done = work()
        rates.append(done / (perf_counter() - start))
    return max(rates)


def bare_decode(videos: Sequence[Footage]) -> int:
    for video in videos:
        with av.open(video.source) as container:
            container.streams.video[0].thread_type = "AUTO"
            for frame in container.decode(video=0):
                frame.to_ndarray(format="rgb24", threads=1)
    return sum(video.frames for video in videos)


def read_videos(videos: Sequence[Footage], short_side: int) -> int:
    decoder = Decoder()
    return sum(1 for video in videos for _ in decoder.read_all(video, short_side))


def feed(videos: Sequence[Footage], source: FrameSource, workers: int, batches: int) -> float:
    """Frames/s of batches, once the workers run."""
    running = load_batches(Clips(videos, HOW, source, batch=BATCH), workers=workers)
    next(running)
    return best(lambda: sum(FRAMES * len(b.clips) for b in islice(running, batches)), 3)


def copy_rate(height: int, width: int) -> float:
    """Frames/s of copying as many bytes as a batch holds, one thread."""
    frames = np.ones((1000, height, width, 3), np.uint8)
    order = np.random.default_rng(0).permutation(1000)[: BATCH * FRAMES]
    return best(lambda: len(np.stack([frames[k] for k in order])))


def ours(batch: ClipBatch, draws: Draws) -> Tensor:
    views = place(batch.frames, draws)
    return normalise(recolour(views.frames, draws), views.valid)


def image_by_image(batch: ClipBatch, draws: Draws) -> Tensor:
    views = []
    for number, clip in enumerate(batch.frames):
        for image in clip:
            views.append(one_image(image, draws, number))
    return torch.stack(views)


def one_image(image: Tensor, draws: Draws, number: int) -> Tensor:
    """What torchvision does with one image [3, H, W]."""
    image = tv.resize(image, draws.resized[number].tolist(), antialias=True)
    image = tv.crop(image, *draws.box[number].tolist())
    image = tv.horizontal_flip(image) if draws.flip[number] else image
    image = tv.to_dtype(image, torch.float32, scale=True)
    for change in draws.order[number].tolist():
        if change >= 0:
            image = ADJUST[change](image, draws.factors[number, change].item())
    if draws.grey[number]:
        image = tv.rgb_to_grayscale(image, num_output_channels=3)
    if sigma := draws.sigma[number].item():
        image = tv.gaussian_blur(image, list(draws.how.blur_taps), [sigma])
    return tv.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def decoding(videos: Sequence[Footage]) -> None:
    floor = best(lambda: bare_decode(videos))
    print(f"bare PyAV loop                       {floor:8.0f} frames/s")
    for side, name in ((10_000, "as they are"), (SIDE, f"brought to {SIDE} px")):
        rate = best(lambda side=side: read_videos(videos, side))
        print(f"whole videos, {name:22s} {rate:8.0f} frames/s   {rate / floor:5.2f} of bare")
    for workers in (0, 2):
        rate = feed(videos, Decoded(SIDE, Decoder()), workers, 2)
        print(
            f"random clips, {workers} workers              {rate:8.0f} frames/s   {rate / floor:5.2f} of bare"
        )


def storing(videos: Sequence[Footage], folder: Path) -> None:
    start = perf_counter()
    store, _ = store_frames(videos, SIDE, folder=folder)
    frames, size = sum(v.frames for v in videos), store.frames(videos[0]).shape[1:3]
    print(f"filling the store                    {frames / (perf_counter() - start):8.0f} frames/s, once")
    floor = copy_rate(*size)
    print(f"copying frames of {size[0]}x{size[1]}            {floor:8.0f} frames/s")
    for workers in (0, 1, 2):
        rate = feed(videos, Stored(store), workers, 10)
        square = rate * size[0] * size[1] / SIDE**2
        print(
            f"stored clips, {workers} workers              {rate:8.0f} frames/s   {rate / floor:5.2f} of "
            f"copying; {square:.0f} of {SIDE}x{SIDE}"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = feed(videos, OnDevice(store, videos, device), 0, 10)
    print(f"clips in the memory of {device.type:4s}          {rate:8.0f} frames/s")
    augmenting(Clips(videos, HOW, Stored(store), batch=BATCH).batch_at(0, 0), device)


def augmenting(batch: ClipBatch, device: torch.device) -> None:
    moved, images = batch.to(device), BATCH * FRAMES

    def timed(work: Callable[[ClipBatch, Draws], Tensor], draws: Draws) -> int:
        work(moved, draws)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return images

    for name, how in (("resize, crop, flip", PLAIN), ("and colours, grey, blur", RICH)):
        draws = draw(how, batch.sizes, batch.generators())
        fast, slow = (best(lambda w=work, d=draws: timed(w, d)) for work in (ours, image_by_image))
        print(
            f"{name:24s} on {device.type:4s}     {fast:8.0f} frames/s   {fast / slow:5.1f} times torchvision "
            f"image by image ({slow:.0f})"
        )


def main() -> None:
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(sys.argv[1]) if len(sys.argv) > 1 else made_up(Path(folder))
        videos = index_videos(root).videos[:VIDEOS]
        print(f"{len(videos)} videos, {sum(v.frames for v in videos)} frames; batches of {BATCH}x{FRAMES}")
        decoding(videos)
        storing(videos, Path(folder) / "store")


if __name__ == "__main__":
    main()
