"""Reading: the index agrees with what a bare decode loop gives, and any access gives the same frame."""

import gc
import os
import shutil
import threading
import warnings
from fractions import Fraction
from pathlib import Path

import av
import fsspec
import numpy as np
import oracles_video as oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import unspool
from unspool import UnspoolWarning, UsageError, VideoError, open_video
from unspool.video.source import natural_key

SHARED = Path(os.environ.get("UNSPOOL_SHARED", Path(__file__).parents[2] / "shared"))
FAST = {"preset": "veryfast", "x264-params": "scenecut=0"}
OPEN_GOP = {**FAST, "x264-params": "open-gop=1:keyint=8:min-keyint=4:bframes=3:b-pyramid=normal"}
ALT_REF = {"cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "16"}  # frames that are never shown
OFF_BEAT = [Fraction(n, 600) for n in np.cumsum([7, 1, 30, 12, 3, 29, 8, 8, 50, 2] * 3).tolist()]

KINDS = {
    "h264-b-frames.mp4": {"options": FAST, "b_frames": 3},
    "h264-one-gop.mp4": {"options": FAST, "gop": 250},
    "h264-open-gop.mp4": {"options": OPEN_GOP},
    "h264-open-gop.mkv": {"options": OPEN_GOP},
    "h264-open-gop.ts": {"options": OPEN_GOP, "clock": Fraction(1, 90000)},
    "h264-intra-refresh.ts": {"options": {**FAST, "x264-params": "intra-refresh=1:keyint=8"}},
    "h264-interlaced.mp4": {"options": {**FAST, "x264-params": "interlaced=1"}},
    "h264-late-start.mp4": {"options": FAST, "times": [t + 3 for t in OFF_BEAT], "clock": Fraction(1, 600)},
    "h264-fragments.mp4": {"options": FAST, "container": {"movflags": "frag_keyframe+empty_moov"}},
    "h264-vfr.mp4": {"options": FAST, "times": OFF_BEAT, "clock": Fraction(1, 600)},
    "h264-vfr.mkv": {"options": FAST, "times": OFF_BEAT, "clock": Fraction(1, 1000)},
    "h264.flv": {"options": FAST},
    "hevc-open-gop.mp4": {
        "codec": "libx265",
        "options": {"preset": "ultrafast", "x265-params": "log-level=none:keyint=8:open-gop=1:bframes=4"},
    },
    "vp9.webm": {"codec": "libvpx-vp9", "options": ALT_REF},
    "vp8.webm": {"codec": "libvpx", "options": ALT_REF},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 2, "clock": Fraction(1, 25)},
    "mpeg4.mkv": {"codec": "mpeg4", "b_frames": 2, "clock": Fraction(1, 25)},
    "mpeg2.mpg": {"codec": "mpeg2video", "b_frames": 2, "clock": Fraction(1, 25)},
    "mjpeg.mov": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "ffv1.mkv": {"codec": "ffv1"},
    "raw.avi": {"codec": "rawvideo", "pixels": "rgb24", "clock": Fraction(1, 25)},
    "wide-gamut.mov": {"codec": "prores_ks", "pixels": "yuv422p10le"},
    "small.gif": {"codec": "gif", "pixels": "rgb8", "clock": Fraction(1, 100)},
}  # fmt: skip


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Makes a file of a kind once."""
    folder, frames = tmp_path_factory.mktemp("made"), oracle.moving_frames(30)

    def make(name):
        path = folder / name
        if not path.exists():
            try:
                oracle.encode(path, frames, **KINDS[name])
            except (ValueError, OSError) as error:  # an FFmpeg without this encoder
                pytest.skip(f"{name} cannot be made here: {error}")
        return path

    return make


@pytest.fixture(scope="session")
def clip(made):
    return made("h264-b-frames.mp4")


def assert_exact(path):
    """Length, times, order and random access of `open_video` equal the bare loop's."""
    images, times = oracle.decode(path)
    with open_video(path) as video:
        assert len(video) == len(images)
        assert list(video.times) == times
        for got, expected in zip(video, images, strict=True):
            np.testing.assert_array_equal(got, expected)
        for index in np.random.default_rng(0).permutation(len(video))[:30].tolist():
            np.testing.assert_array_equal(video[index], images[index])


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_and_time_equals_a_bare_decode_loop(made, name):
    assert_exact(made(name))


def test_every_shared_clip_equals_a_bare_decode_loop():
    clips = sorted((SHARED / "data" / "videos").glob("*.mp4"))
    if not clips:
        pytest.skip("shared/data/videos is not here")
    for path in clips[::6]:
        assert_exact(path)


@pytest.mark.slow
def test_all_shared_clips_equal_a_bare_decode_loop():
    clips = sorted((SHARED / "data" / "videos").glob("*.mp4"))
    if not clips:
        pytest.skip("shared/data/videos is not here")
    for path in clips:
        assert_exact(path)


def test_frames_hidden_by_an_edit_list_are_not_counted(clip, tmp_path):
    path = oracle.remux(clip, tmp_path / "cut.mp4", shift=-Fraction(21, 100))
    assert len(open_video(path)) == 24  # 0.21 s at 25 a second is more than five frames
    assert_exact(path)


def test_frames_before_the_first_key_frame_are_named_as_missing(clip, tmp_path):
    path = oracle.remux(clip, tmp_path / "headless.mp4", keep=lambda number: number >= 3)
    with pytest.warns(
        UnspoolWarning, match=r"headless.mp4: 5 of 27 frames cannot be shown, as the key frame"
    ):
        video = open_video(path)
    assert len(video) == len(list(video)) == 22


def test_times_without_stamps_come_from_the_rate(tmp_path):
    path = oracle.encode(tmp_path / "raw.h264", oracle.moving_frames(12), options=FAST)
    video = open_video(path)
    assert list(video.times) == [Fraction(k, 25) for k in range(12)]
    np.testing.assert_array_equal(video[7], oracle.decode(path)[0][7])


def restamped(source, target, stamp):
    """The same packets, all shown at one time."""
    with av.open(str(source)) as given, av.open(str(target), "w") as output:
        copy = output.add_stream_from_template(given.streams.video[0])
        for packet in (p for p in given.demux(video=0) if p.size):
            packet.pts = packet.dts = stamp
            packet.stream = copy
            output.mux(packet)
    return target


@pytest.mark.parametrize("stamp", [0, 7000])
def test_a_clip_whose_time_stamps_are_all_equal_is_read_at_its_nominal_rate(made, tmp_path, stamp):
    still = restamped(made("mpeg4.mkv"), tmp_path / "still.mkv", stamp)
    images, _ = oracle.decode(made("mpeg4.mkv"))
    with pytest.warns(
        UnspoolWarning, match="all 30 frames have the same time stamp.*25 frames/s that its header"
    ):
        video = open_video(still)
    with video:
        assert list(video.times) == [Fraction(k, 25) for k in range(30)]
        for got, expected in zip(video, images, strict=True):
            np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(video[17], images[17])
        np.testing.assert_array_equal(video[3], images[3])


def test_a_clip_of_one_time_stamp_and_no_rate_runs_at_24_frames_a_second(made, tmp_path):
    still = restamped(made("mjpeg.mov"), tmp_path / "still.mov", 0)
    with pytest.warns(UnspoolWarning, match="24 frames/s that unspool takes"):
        video = open_video(still)
    with video:
        assert (len(video), video.fps, video.times[-1]) == (30, 24, Fraction(29, 24))


@given(order=st.lists(st.integers(-30, 29), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_of_look_ups_gives_the_same_frames(clip, order):
    images, _ = oracle.decode(clip)
    with open_video(clip) as video:
        for index in order:
            np.testing.assert_array_equal(video[index], images[index])


def test_look_ups_in_order_never_seek(clip, monkeypatch):
    video = open_video(clip)
    seeks = []
    monkeypatch.setattr("unspool.video.packets.Decoder.seek", lambda *given: seeks.append(given))
    for index in range(8):  # the first group of pictures
        video[index]
    assert not seeks


def test_looking_up_does_not_disturb_an_iteration(clip):
    images, _ = oracle.decode(clip)
    with open_video(clip) as video:
        for index, frame in enumerate(video):
            np.testing.assert_array_equal(frame, images[index])
            np.testing.assert_array_equal(video[len(video) - 1 - index], images[-1 - index])


def test_two_iterations_run_side_by_side(clip):
    video = open_video(clip)
    for left, right in zip(video, video, strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_frame_beyond_the_end_is_an_index_error_with_the_length(clip):
    with pytest.raises(IndexError, match="frame 30 asked for, there are 30"):
        open_video(clip)[30]


def test_a_video_knows_its_name_size_and_rate(clip):
    video = open_video(str(clip))
    assert (video.name, video.source) == ("h264-b-frames", str(clip))
    assert (video.height, video.width, video.fps, video.frame_names) == (48, 64, 25, None)


def test_times_can_be_sliced(clip):
    assert open_video(clip).times[1:4] == [Fraction(1, 25), Fraction(2, 25), Fraction(3, 25)]


def test_pixels_that_are_not_square_stay_and_are_told(tmp_path):
    path = oracle.encode(tmp_path / "wide.mp4", oracle.moving_frames(3), options=FAST, aspect=Fraction(4, 3))
    video = open_video(path)
    assert video.pixel_aspect == Fraction(4, 3)
    assert video[0].shape == (48, 64, 3)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("tag", "turns"), [(0, 0), (90, 1), (180, 2), (270, 3)])
def test_a_rotated_video_equals_one_whose_pixels_were_turned(clip, tmp_path, tag, turns, mirror):
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a display rotation")
    path = oracle.remux(clip, tmp_path / "turned.mp4", rotation=tag, mirror=mirror)
    upright = [np.rot90(image, turns) for image in oracle.decode(clip)[0]]
    upright = [image[:, ::-1] if mirror else image for image in upright]
    video = open_video(path)
    assert (video.height, video.width) == upright[0].shape[:2]
    for got, expected in zip(video, upright, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert video[0].flags.c_contiguous


def test_transparent_pixels_are_white(tmp_path):
    frames = [Image.new("RGBA", (16, 12), (200, 0, 0, 0)) for _ in range(2)]
    frames[1].paste((0, 0, 200, 255), (0, 0, 8, 12))
    frames[0].save(tmp_path / "clear.gif", save_all=True, append_images=frames[1:], disposal=2)
    frame = open_video(tmp_path / "clear.gif")[1]
    assert frame[0, 12].tolist() == [255, 255, 255]
    assert frame[0, 2].tolist() == [0, 0, 200]


def test_a_change_of_size_is_an_error_that_names_both(tmp_path):
    parts = [
        oracle.encode(tmp_path / f"{n}.ts", oracle.moving_frames(9, *size), options=FAST, gop=4).read_bytes()
        for n, size in enumerate([(48, 64), (64, 80)])
    ]
    path = tmp_path / "changes.ts"
    path.write_bytes(b"".join(parts))
    with (
        warnings.catch_warnings(action="ignore"),  # where they are joined, a packet is odd
        pytest.raises(VideoError, match=r"changes.ts: changes its size from 64x48 to 80x64 at .* s"),
    ):
        list(open_video(path))


def test_hdr_is_told(tmp_path):
    params = "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"
    options = {"preset": "ultrafast", "x265-params": params}
    path = tmp_path / "hdr.mp4"
    oracle.encode(path, oracle.moving_frames(2), "libx265", options=options, pixels="yuv420p10le")
    with pytest.warns(UnspoolWarning, match=r"hdr.mp4: is HDR \(PQ\)"):
        assert open_video(path)[0].dtype == np.uint8


# -------------------------------------------------------------------------------------------- damage


def test_damage_found_at_opening_costs_only_the_frames_it_hits(tmp_path):
    whole = oracle.encode(tmp_path / "whole.mp4", oracle.moving_frames(30), options=FAST, b_frames=0)
    path = oracle.spoil(whole, tmp_path / "hit.mp4", [10, 11])
    said = r"lost frames 10-11 \(0.40 s to 0.44 s\).*28 of 30 remain; frames 12-15, up to the next key frame"
    with pytest.warns(UnspoolWarning, match=said):
        video = open_video(path)
    images, times = oracle.decode(whole)
    kept = [n for n in range(30) if n not in {10, 11}]
    assert list(video.times) == [times[n] for n in kept]
    for number, frame in zip(kept, video, strict=True):
        if not 12 <= number < 16:
            np.testing.assert_array_equal(frame, images[number])
    np.testing.assert_array_equal(video[20], images[22])


def test_damage_found_while_reading_shortens_the_video_and_its_times(tmp_path):
    whole = oracle.encode(tmp_path / "whole.mov", oracle.moving_frames(12), "mjpeg", pixels="yuvj420p")
    path = oracle.spoil(whole, tmp_path / "hit.mov", [5], fill=b"\x55\xaa")
    video = open_video(path)
    assert len(video) == 12  # JPEG packets do not show from outside that they are damaged
    with pytest.warns(
        UnspoolWarning, match=r"hit.mov: lost frame 5 \(0.20 s\), which cannot be decoded; 11 of 12"
    ):
        frames = list(video)
    assert len(frames) == len(video) == len(video.times) == 11
    assert video.times[5] == Fraction(6, 25)
    np.testing.assert_array_equal(video[5], oracle.decode(whole)[0][6])


def test_a_look_up_of_a_damaged_frame_gives_the_next_one(tmp_path):
    whole = oracle.encode(tmp_path / "whole.mov", oracle.moving_frames(12), "mjpeg", pixels="yuvj420p")
    video = open_video(oracle.spoil(whole, tmp_path / "hit.mov", [5], fill=b"\x55\xaa"))
    with pytest.warns(UnspoolWarning, match="lost frame 5"):
        frame = video[5]
    np.testing.assert_array_equal(frame, oracle.decode(whole)[0][6])


def test_a_damaged_key_frame_is_told_when_it_is_read(tmp_path):
    whole = oracle.encode(tmp_path / "whole.mp4", oracle.moving_frames(24), "mpeg4", clock=Fraction(1, 25))
    data = bytearray(whole.read_bytes())
    packet = oracle.packets(whole)[8][2]
    start = data.find(packet)
    data[start + len(packet) // 2 : start + len(packet)] = b"\x5a" * (len(packet) - len(packet) // 2)
    path = tmp_path / "hit.mp4"
    path.write_bytes(data)
    with pytest.warns(UnspoolWarning, match=r"hit.mp4: frame 8 \(0.32 s\) is damaged; it is kept"):
        assert len(list(open_video(path))) == 24


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_damaged_iteration_and_length_agree(clip, tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    data = bytearray(Path(clip).read_bytes())
    start = int(rng.integers(600, len(data) - 60))
    data[start : start + 40] = rng.bytes(40)
    path = tmp_path_factory.mktemp("fuzz") / "fuzz.mp4"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnspoolWarning)
        try:
            video = open_video(path)
        except VideoError as error:
            assert "fuzz.mp4" in str(error)
            return
        frames = list(video)
        assert len(frames) == len(video) == len(video.times)
        assert list(video.times) == sorted(set(video.times))


# -------------------------------------------------------------------------------------- decode ahead


def ahead_threads():
    return [t for t in threading.enumerate() if t.name == "unspool-decode-ahead"]


def test_an_iteration_left_early_ends_its_thread(clip):
    frames = iter(open_video(clip))
    next(frames)
    assert ahead_threads()
    frames.close()
    assert not ahead_threads()


def test_a_loop_that_breaks_leaves_no_thread_behind(clip):
    for _ in open_video(clip):
        break
    gc.collect()
    assert not ahead_threads()


def test_closing_the_video_ends_all_its_threads(clip):
    video = open_video(clip)
    running = [iter(video) for _ in range(3)]
    for frames in running:
        next(frames)
    assert len(ahead_threads()) == 3
    video.close()
    assert not ahead_threads()


def test_an_error_in_the_thread_reaches_the_reader(tmp_path):
    for number in range(6):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{number}.png")
    video = open_video(tmp_path)
    (tmp_path / "4.png").write_bytes(b"gone")
    frames = iter(video)
    for _ in range(4):
        next(frames)
    with pytest.raises(VideoError, match=r"4.png: frame cannot be read"):
        next(frames)
    assert not ahead_threads()


def test_only_so_many_frames_are_decoded_ahead(clip, monkeypatch):
    made = []
    convert = unspool.video.container.Container._to_rgb
    monkeypatch.setattr(
        unspool.video.container.Container, "_to_rgb", lambda *given: made.append(1) or convert(*given)
    )
    frames = iter(open_video(clip, decode_ahead=2))
    next(frames)
    for _ in range(50):
        threading.Event().wait(0.01)
    assert len(made) <= 4  # one given, two ready, one in hand
    frames.close()


def resident_megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_does_not_grow_with_the_video(tmp_path):
    frames = oracle.moving_frames(20) * 150
    path = oracle.encode(tmp_path / "long.mp4", frames, options={"preset": "ultrafast"}, gop=50)
    for index, _ in enumerate(open_video(path)):
        if index == 500:
            start = resident_megabytes()
    assert index == 2999
    assert resident_megabytes() - start < 10


def test_without_decode_ahead_there_is_no_thread(clip):
    frames = iter(open_video(clip, decode_ahead=0))
    next(frames)
    assert not ahead_threads()
    assert len(list(frames)) == 29


# ------------------------------------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "walk"
    home.mkdir()
    for number, name in enumerate(["f1.JPG", "f2.jpeg", "f10.png", "f11.webp", "f012.PPM"]):
        Image.new("RGB", (30, 20), (number * 50,) * 3).save(home / name)
    (home / ".hidden.png").write_bytes(b"")
    (home / "notes.txt").write_text("not a frame")
    return home


def test_a_folder_is_read_in_natural_order_whatever_the_case(folder):
    video = open_video(folder)
    assert video.frame_names == ["f1", "f2", "f10", "f11", "f012"]
    assert [int(frame.mean().round()) for frame in video] == [0, 50, 100, 150, 200]
    assert (video.name, len(video), video.height, video.width) == ("walk", 5, 20, 30)


def test_a_folder_runs_at_24_frames_a_second_unless_told(folder):
    assert open_video(folder).times[3] == Fraction(3, 24)
    assert open_video(folder, fps=10).times[3] == Fraction(3, 10)


@pytest.mark.parametrize("fps", [0, -3])
def test_a_rate_that_is_not_above_0_is_wrong_use(folder, fps):
    with pytest.raises(UsageError, match="above 0"):
        open_video(folder, fps=fps)


def test_a_rate_for_a_file_is_wrong_use(clip):
    with pytest.raises(UsageError, match="has its own times"):
        open_video(clip, fps=10)


def test_a_glob_takes_the_frames_that_match(folder):
    video = open_video(folder / "f1?.*")
    assert (video.name, video.frame_names) == ("walk", ["f10", "f11"])


def test_a_glob_without_a_match_is_an_error_with_the_pattern(folder):
    with pytest.raises(VideoError, match=r"walk/z\*\.png: no image matches"):
        open_video(folder / "z*.png")


def test_a_file_with_brackets_in_its_name_is_a_file(clip, tmp_path):
    path = tmp_path / "clip [1080].mp4"
    shutil.copy(clip, path)
    assert len(open_video(path)) == 30


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(VideoError, match="holds no images"):
        open_video(tmp_path)


def test_frames_of_two_sizes_are_an_error_that_names_the_odd_one_and_both_sizes(folder):
    Image.new("RGB", (31, 20)).save(folder / "f10.png")
    with pytest.raises(VideoError, match=r"f10.png: is 31x20, but the other frames are 30x20"):
        open_video(folder)


def test_an_unreadable_frame_is_an_error_that_names_it(folder):
    (folder / "f10.png").write_bytes(b"not an image")
    with pytest.raises(VideoError, match=r"f10.png: frame cannot be read .*replace this image"):
        open_video(folder)


def test_a_cut_off_frame_is_an_error_when_it_is_read(folder):
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    Image.fromarray(noise).save(folder / "f10.png")
    (folder / "f10.png").write_bytes((folder / "f10.png").read_bytes()[:900])
    video = open_video(folder)
    with pytest.raises(VideoError, match=r"f10.png: frame cannot be read"):
        video[2]


def test_the_same_frame_in_two_formats_is_an_error(folder):
    Image.new("RGB", (30, 20)).save(folder / "f1.png")
    with pytest.raises(VideoError, match=r"f1.JPG and f1.png are the same frame twice.*glob"):
        open_video(folder)


def test_a_photograph_taken_upright_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    picture = Image.fromarray(np.arange(0, 240, dtype=np.uint8).reshape(8, 10, 3))
    picture.save(tmp_path / "0.png", exif=exif)
    video = open_video(tmp_path)
    assert (video.height, video.width) == (10, 8)
    np.testing.assert_array_equal(video[0], np.rot90(np.asarray(picture), -1))


def test_grey_frames_of_8_and_16_bits_become_rgb(tmp_path):
    Image.fromarray(np.full((4, 6), 77, np.uint8)).save(tmp_path / "0.png")
    Image.fromarray(np.full((4, 6), 77 * 256, np.uint16)).save(tmp_path / "1.png")
    assert [frame[0, 0].tolist() for frame in open_video(tmp_path)] == [[77] * 3, [77] * 3]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20, unique=True))
def test_natural_order_is_the_order_of_the_numbers(numbers):
    names = sorted((f"frame_{n}.png" for n in numbers), key=natural_key)
    assert names == [f"frame_{n}.png" for n in sorted(numbers)]


# ----------------------------------------------------------------------------------------- addresses


@pytest.fixture
def memory(folder, clip):
    files = fsspec.filesystem("memory")
    files.pipe("/unspool/clip.mp4", Path(clip).read_bytes())
    for path in folder.iterdir():
        files.pipe(f"/unspool/walk/{path.name}", path.read_bytes())
    yield "memory://unspool"
    files.rm("/unspool", recursive=True)


def test_a_file_behind_an_address_equals_the_local_one(memory, clip):
    images, times = oracle.decode(clip)
    video = open_video(f"{memory}/clip.mp4")
    assert (video.name, list(video.times)) == ("clip", times)
    for got, expected in zip(video, images, strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(video[21], images[21])


def test_a_folder_behind_an_address_equals_the_local_one(memory, folder):
    there, here = open_video(f"{memory}/walk"), open_video(folder)
    assert (there.name, there.frame_names) == ("walk", here.frame_names)
    for got, expected in zip(there, here, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_glob_behind_an_address_works(memory):
    assert open_video(f"{memory}/walk/*.png").frame_names == ["f10"]


def test_a_file_address_is_a_local_file(clip):
    assert len(open_video(f"file://{clip}")) == 30


def test_an_address_with_nothing_behind_it_is_an_error(memory):
    with pytest.raises(VideoError, match=r"unspool/none.mp4: no such file"):
        open_video(f"{memory}/none.mp4")


def test_an_error_of_the_storage_is_an_error_that_names_the_address(memory, monkeypatch):
    class NoCredentialsError(Exception):
        pass

    def refuse(*_, **__):
        raise NoCredentialsError("no credentials")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "_open", refuse)
    with pytest.raises(VideoError, match=r"clip.mp4: cannot be read \(no credentials\); check the address"):
        open_video(f"{memory}/clip.mp4")


def test_an_unknown_kind_of_address_is_an_error():
    with pytest.raises(VideoError, match=r"xyz://a/b.mp4: this kind of address cannot be opened"):
        open_video("xyz://a/b.mp4")


def test_a_text_file_is_not_drawn_as_a_video(tmp_path):
    (tmp_path / "notes.txt").write_text("lorem ipsum " * 100)
    with pytest.raises(VideoError, match=r"notes.txt: "):
        open_video(tmp_path / "notes.txt")
