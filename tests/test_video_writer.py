"""Writing: times, sizes, sound and colours survive; nothing half written is ever left."""

import errno
import os
import subprocess
from fractions import Fraction

import av
import numpy as np
import oracles_video as oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unspool import OutputError, UnspoolWarning, VideoWriter, open_video
from unspool.video import writer as module

FAST = {"preset": "veryfast", "x264-params": "scenecut=0"}


def write(path, frames, times, **options):
    height, width = frames[0].shape[:2]
    with VideoWriter(path, height=height, width=width, times=times, **options) as output:
        for frame in frames:
            output.write(frame)
    return path


def at_25(count, start=Fraction(0)):
    return [start + Fraction(k, 25) for k in range(count)]


def inside(folder):
    return [path.name for path in folder.iterdir()]


def noise_free_error(written, original):
    return float(np.abs(written.astype(int) - original.astype(int)).mean())


@given(
    gaps=st.lists(st.integers(1, 3000), min_size=1, max_size=20),
    clock=st.sampled_from([600, 1000, 12288, 15360, 30000, 90000]),
    start=st.integers(0, 5000),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_times_come_back_exactly_whatever_their_rhythm(tmp_path, gaps, clock, start):
    ticks = np.cumsum([start, *gaps]).tolist()
    times = [Fraction(t, clock) for t in ticks]
    write(tmp_path / "o.mp4", oracle.moving_frames(len(times), 16, 16), times)
    assert list(open_video(tmp_path / "o.mp4").times) == times


def test_the_times_of_ntsc_video_come_back_exactly(tmp_path):
    times = [k * Fraction(1001, 30000) for k in range(40)]
    write(tmp_path / "o.mp4", oracle.moving_frames(40), times)
    video = open_video(tmp_path / "o.mp4")
    assert list(video.times) == times
    assert video.fps == Fraction(30000, 1001)


def test_times_finer_than_mp4_can_say_are_kept_within_a_tick(tmp_path):
    times = [Fraction(k, 7) + Fraction(1, 10_000_019) for k in range(5)]
    write(tmp_path / "o.mp4", oracle.moving_frames(5), times)
    got = open_video(tmp_path / "o.mp4").times
    assert max(abs(a - b) for a, b in zip(got, times, strict=True)) <= Fraction(1, 60_000)


def test_a_video_that_starts_before_0_is_moved_to_0(tmp_path):
    write(tmp_path / "o.mp4", oracle.moving_frames(10), at_25(10, Fraction(-1, 5)))
    assert list(open_video(tmp_path / "o.mp4").times) == at_25(10)


def test_the_last_frame_lasts_as_long_as_the_one_before(tmp_path):
    write(tmp_path / "o.mp4", oracle.moving_frames(3), [Fraction(0), Fraction(1, 4), Fraction(3, 4)])
    with av.open(str(tmp_path / "o.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.duration * stream.time_base == Fraction(5, 4)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 64), (48, 63), (47, 63), (1, 1)])
def test_odd_sizes_are_padded_to_even_by_repeating_the_edge(tmp_path, height, width):
    frames = [frame[:height, :width] for frame in oracle.moving_frames(4)]
    write(tmp_path / "o.mp4", frames, at_25(4), crf=10)
    video = open_video(tmp_path / "o.mp4")
    assert (video.height, video.width) == (height + height % 2, width + width % 2)
    padded = np.pad(frames[2], ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    assert noise_free_error(video[2], padded) < 12


@pytest.mark.parametrize(("height", "matrix"), [(480, 6), (720, 1)])
def test_the_colours_are_tagged_and_come_back(tmp_path, height, matrix):
    frames = [np.broadcast_to(np.array([200, 40, 90], np.uint8), (height, 64, 3))] * 2
    write(tmp_path / "o.mp4", frames, at_25(2))
    with av.open(str(tmp_path / "o.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.format.name, int(frame.colorspace), int(frame.color_range)) == ("yuv420p", matrix, 1)
    assert noise_free_error(open_video(tmp_path / "o.mp4")[0], frames[0]) < 3


def test_the_index_stands_at_the_front_so_that_a_player_can_start_at_once(tmp_path):
    content = write(tmp_path / "o.mp4", oracle.moving_frames(5), at_25(5)).read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_a_player_can_step_back_within_48_frames(tmp_path):
    path = write(tmp_path / "o.mp4", oracle.moving_frames(120), at_25(120))
    keys = [n for n, (_, key, _) in enumerate(oracle.packets(path)) if key]
    assert max(np.diff(keys)) <= 48


def test_pixels_that_are_not_square_are_tagged(tmp_path):
    write(tmp_path / "o.mp4", oracle.moving_frames(2), at_25(2), pixel_aspect=Fraction(4, 3))
    assert open_video(tmp_path / "o.mp4").pixel_aspect == Fraction(4, 3)


def test_what_is_read_can_be_written_with_its_own_times(tmp_path):
    frames = oracle.moving_frames(20)
    times = [Fraction(n, 600) for n in np.cumsum([7, 1, 30, 12, 3] * 4).tolist()]
    source = oracle.encode(tmp_path / "s.mp4", frames, options=FAST, times=times, clock=Fraction(1, 600))
    with open_video(source) as video:
        write(tmp_path / "o.mp4", list(video), video.times)
        assert list(open_video(tmp_path / "o.mp4").times) == list(video.times)


# --------------------------------------------------------------------------------------------- sound


@pytest.fixture(scope="module")
def with_sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "s.mp4"
    return oracle.encode(path, oracle.moving_frames(25), options=FAST, audio="aac")


def sound(path):
    """Times of the packets by their bytes."""
    return [(float(time), data) for time, _, data in oracle.packets(path, "audio")]


def test_the_sound_is_copied_packet_by_packet(tmp_path, with_sound):
    write(tmp_path / "o.mp4", oracle.moving_frames(25), at_25(25), audio_from=with_sound)
    copied, original = sound(tmp_path / "o.mp4"), sound(with_sound)
    assert [data for _, data in copied] == [data for time, data in original if time < 1]
    assert np.allclose([t for t, _ in copied], [t for t, _ in original][: len(copied)], atol=1 / 48000)


def test_the_sound_is_cut_to_the_span_of_the_frames(tmp_path, with_sound):
    times = at_25(10, start=Fraction(2, 5))
    write(tmp_path / "o.mp4", oracle.moving_frames(10), times, audio_from=with_sound)
    kept = sound(tmp_path / "o.mp4")
    packet = 1024 / 48000
    assert 0.4 - packet <= kept[0][0] <= 0.4
    assert 0.8 - packet <= kept[-1][0] < 0.8
    assert kept[0][1] == min((s for s in sound(with_sound) if s[0] + packet >= 0.4), key=lambda s: s[0])[1]


def test_sound_and_frames_stand_side_by_side_in_the_file(tmp_path, with_sound):
    path = write(tmp_path / "o.mp4", oracle.moving_frames(25), at_25(25), audio_from=with_sound)
    with av.open(str(path)) as container:
        kinds = [packet.stream.type for packet in container.demux() if packet.size]
    assert "audio" in kinds[:4]
    assert "video" in kinds[-6:]


def test_a_source_without_sound_gives_a_silent_video(tmp_path):
    source = oracle.encode(tmp_path / "s.mp4", oracle.moving_frames(5), options=FAST)
    path = write(tmp_path / "o.mp4", oracle.moving_frames(5), at_25(5), audio_from=source)
    with av.open(str(path)) as container:
        assert not container.streams.audio


def test_a_folder_of_frames_has_no_sound(tmp_path):
    path = write(tmp_path / "o.mp4", oracle.moving_frames(2), at_25(2), audio_from=tmp_path)
    with av.open(str(path)) as container:
        assert not container.streams.audio


def test_sound_that_ends_early_is_copied_as_far_as_it_goes(tmp_path, with_sound):
    frames = oracle.moving_frames(75)
    path = write(tmp_path / "o.mp4", frames, at_25(75), audio_from=with_sound)
    assert [data for _, data in sound(path)] == [data for _, data in sound(with_sound)]
    assert len(open_video(path)) == 75


def test_sound_that_does_not_fit_an_mp4_is_left_out_with_a_warning(tmp_path):
    source = oracle.encode(tmp_path / "s.mkv", oracle.moving_frames(5), options=FAST, audio="wavpack")
    with pytest.warns(UnspoolWarning, match=r"s.mkv: its sound \(wavpack\) does not fit into an MP4.*AAC"):
        path = write(tmp_path / "o.mp4", oracle.moving_frames(5), at_25(5), audio_from=source)
    assert len(open_video(path)) == 5


# -------------------------------------------------------------------------------------------- errors


def test_the_file_has_its_name_only_when_it_is_whole(tmp_path):
    frames = oracle.moving_frames(3)
    output = VideoWriter(tmp_path / "o.mp4", height=48, width=64, times=at_25(3))
    for frame in frames:
        output.write(frame)
    assert not (tmp_path / "o.mp4").exists()
    output.close()
    assert inside(tmp_path) == ["o.mp4"]


def test_an_error_while_writing_leaves_nothing(tmp_path):
    times = at_25(3)
    with pytest.raises(KeyError), VideoWriter(tmp_path / "o.mp4", height=48, width=64, times=times) as output:
        output.write(oracle.moving_frames(1)[0])
        raise KeyError
    assert inside(tmp_path) == []


def test_giving_up_leaves_an_earlier_file_alone(tmp_path):
    path = write(tmp_path / "o.mp4", oracle.moving_frames(3), at_25(3))
    before = path.read_bytes()
    output = VideoWriter(path, height=48, width=64, times=at_25(3))
    output.write(oracle.moving_frames(1)[0])
    output.abort()
    assert path.read_bytes() == before
    assert inside(tmp_path) == ["o.mp4"]


def test_closing_twice_is_harmless(tmp_path):
    output = VideoWriter(tmp_path / "o.mp4", height=48, width=64, times=at_25(1))
    output.write(oracle.moving_frames(1)[0])
    output.close()
    output.close()
    output.abort()
    assert len(open_video(tmp_path / "o.mp4")) == 1


def test_a_folder_that_is_not_there_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(OutputError, match=r"none/o.mp4: cannot be written \(No such file"):
        VideoWriter(tmp_path / "none" / "o.mp4", height=48, width=64, times=at_25(1))


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    output = VideoWriter(tmp_path / "o.mp4", height=48, width=64, times=at_25(2))
    output.write(oracle.moving_frames(1)[0])

    def full(packets):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(output, "_mux", full)
    with pytest.raises(OutputError, match=r"o.mp4: cannot be written \(No space left on device\)"):
        output.close()
    assert inside(tmp_path) == []


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 kB, where mounting is allowed."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small file system is not allowed here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_really_full_disk_leaves_nothing_but_what_was_whole_before(tiny_disk):
    kept = write(tiny_disk / "kept.mp4", oracle.moving_frames(5), at_25(5))
    noise = np.random.default_rng(0).integers(0, 255, (40, 120, 160, 3), np.uint8)
    with pytest.raises(OutputError, match=r"o.mp4: cannot be written \(No space left on device\)"):
        write(tiny_disk / "o.mp4", list(noise), at_25(40))
    assert inside(tiny_disk) == ["kept.mp4"]
    assert len(list(open_video(kept))) == 5


def test_without_x264_another_encoder_is_taken_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ENCODERS", ("libx264-that-is-not-there", "mpeg4"))
    frames = oracle.moving_frames(10)
    with pytest.warns(
        UnspoolWarning, match=r"lacks libx264-that-is-not-there: videos are written with mpeg4"
    ):
        write(tmp_path / "o.mp4", frames, at_25(10))
    video = open_video(tmp_path / "o.mp4")
    assert list(video.times) == at_25(10)
    assert noise_free_error(video[4], frames[4]) < 20


def test_without_any_encoder_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ENCODERS", ("none-such",))
    with pytest.raises(OutputError, match=r"o.mp4: .*none of the encoders none-such.*install the av wheel"):
        VideoWriter(tmp_path / "o.mp4", height=48, width=64, times=at_25(1))
