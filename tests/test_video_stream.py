"""A video through a pipe: read once, without seeking, of unknown length."""

import io
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from unspool.errors import VideoError
from unspool.masks import write_mask
from unspool.results import read_done
from unspool.video import open_video
from unspool.video.stream import Stream

FRAMES = 7


def muxed(form: str, codec: str = "libx264") -> bytes:
    """A square that moves, in a container."""
    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        stream = container.add_stream(codec, rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for t in range(FRAMES):
            image = np.full((48, 64, 3), 40, np.uint8)
            image[10:30, 5 + 4 * t : 25 + 4 * t] = (220, 60, 60)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return out.getvalue()


class Pipe(io.BytesIO):
    def seek(self, *_: int) -> int:
        raise OSError("a pipe cannot seek")


@pytest.mark.parametrize(
    ("form", "codec"), [("matroska", "libx264"), ("mpegts", "libx264"), ("yuv4mpegpipe", "wrapped_avframe")]
)
def test_a_stream_gives_the_frames_and_times_of_the_file(form: str, codec: str, tmp_path: Path) -> None:
    data = muxed(form, codec)
    path = tmp_path / ("clip." + {"matroska": "mkv", "mpegts": "ts"}.get(form, "y4m"))
    path.write_bytes(data)
    with Stream(Pipe(data)) as stream, open_video(path) as video:
        for one, other in zip(stream, video, strict=True):
            assert np.array_equal(one, other)
        assert stream.times == list(video.times)


def test_what_is_no_video_is_refused_with_the_way_out() -> None:
    with pytest.raises(VideoError, match=r"stdin: .*Matroska"):
        Stream(Pipe(b"nothing" * 100))


def test_track_reads_a_pipe_and_never_takes_a_second_stream_for_the_first(tmp_path: Path) -> None:
    labels = np.zeros((48, 64), np.uint8)
    labels[10:30, 5:25] = 1
    write_mask(tmp_path / "first.png", labels)
    command = [sys.executable, "-m", "unspool", "track", "-", "--mask", "first.png"]
    facts = {"input": muxed("matroska"), "cwd": tmp_path, "capture_output": True}
    done = subprocess.run(command, check=False, env=os.environ, **facts)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    home = tmp_path / "unspool-track-stdin"
    record = read_done(home, "stdin")
    assert record is not None
    assert record["frames"] == FRAMES == len(list((home / "videos" / "stdin" / "masks").iterdir()))
    with open_video(home / "videos" / "stdin" / "overlay.mp4") as overlay:
        assert list(overlay.times) == [Fraction(t, 25) for t in range(FRAMES)]
    again = subprocess.run(command, check=False, env=os.environ, **facts)  # type: ignore[call-overload]
    assert again.returncode == 2
    assert b"another video" in again.stderr
