"""Slow, plain forms for the video tests: files made with bare PyAV, and a bare decode loop."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def moving_frames(count, height=48, width=64):
    """Frames that all differ: a square walks over a gradient, its colour changing."""
    rows, columns = np.mgrid[:height, :width]
    base = np.stack([rows * 2, columns * 2, (rows + columns)], -1).astype(np.uint8)
    frames = []
    for k in range(count):
        frame = base.copy()
        top, left = (3 * k) % (height - 12), (5 * k) % (width - 12)
        frame[top : top + 12, left : left + 12] = [255 - 3 * k % 200, (40 + 7 * k) % 256, (11 * k) % 256]
        frames.append(frame)
    return frames


def encode(
    path, frames, codec="libx264", *, times=None, clock=Fraction(1, 12800), options=None, pixels="yuv420p",
    gop=8, b_frames=None, container=None, audio=None, aspect=None,
):  # fmt: skip
    """A video file by bare PyAV; `times` in seconds (default 25 a second), `audio` a codec for a tone."""
    times = times or [Fraction(k, 25) for k in range(len(frames))]
    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.options = pixels, options or {}
        context = stream.codec_context
        context.gop_size, context.time_base, stream.time_base = gop, clock, clock
        if b_frames is not None:
            context.max_b_frames = b_frames
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        tone = output.add_stream(audio, rate=48000) if audio else None
        for image, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base, frame.pts = clock, round(time / clock)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if tone:
            _write_tone(output, tone, times[-1] + Fraction(1, 25))
    return path


def _write_tone(output, stream, seconds):
    size = 1024
    for start in range(0, int(seconds * 48000), size):
        wave = np.sin(np.arange(start, start + size) * 2 * np.pi * 440 / 48000).astype(np.float32)
        sound = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
        sound.sample_rate, sound.pts, sound.time_base = 48000, start, Fraction(1, 48000)
        output.mux(stream.encode(sound))
    output.mux(stream.encode(None))


def remux(source, target, *, shift=Fraction(0), keep=lambda number: True, rotation=None, mirror=False):
    """The same packets in another file: later, some left out, or with a display rotation, then a mirror."""
    with av.open(str(source)) as given, av.open(str(target), "w") as output:
        stream = given.streams.video[0]
        copy = output.add_stream_from_template(stream)
        if rotation is not None:
            copy.set_display_rotation(rotation, hflip=mirror)
        for number, packet in enumerate(p for p in given.demux(stream) if p.size):
            if keep(number):
                move = round(shift / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + move, packet.dts + move, copy
                output.mux(packet)
    return target


def decode(path):
    """Images and times of all frames: one thread, packet by packet, errors skipped."""
    images, times = [], []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            images += [frame.to_ndarray(format="rgb24") for frame in frames]
            times += [frame.pts * frame.time_base for frame in frames if frame.pts is not None]
    return images, times


def packets(path, kind="video"):
    """(time, key frame?, bytes) of each packet of the first stream of a kind."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [
            (packet.pts * packet.time_base, packet.is_keyframe, bytes(packet))
            for packet in container.demux(stream)
            if packet.size
        ]


def spoil(path, target, numbers, fill=b"\x00"):
    """A copy whose packets `numbers` (in file order) are overwritten."""
    data = bytearray(Path(path).read_bytes())
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(container.streams.video[0]) if p.size]
    for number in numbers:
        start, size = places[number]
        data[start : start + size] = (fill * size)[:size]
    Path(target).write_bytes(data)
    return target
