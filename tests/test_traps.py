"""Every file of shared/data/traps, as a video or as a mask: it works, or the message helps."""

import os
import re
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import oracles_video as oracle
import pytest

from unspool import MaskError, UnspoolWarning, VideoError, VideoWriter, open_video, read_mask
from unspool.masks import fit_mask

TRAPS = Path(os.environ.get("UNSPOOL_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "traps"
pytestmark = pytest.mark.skipif(not TRAPS.is_dir(), reason="shared/data/traps is not here")

WORKS = {  # name: frames, (height, width), frames per second
    "anim.gif": (8, (54, 96), 10),
    "h264_10bit_444.mp4": (12, (180, 320), 12),
    "odd_321x181.mp4": (12, (181, 321), 12),
    "ok.mp4": (24, (180, 320), 12),
    "one_frame.mp4": (1, (180, 320), 12),
    "rotated90.mp4": (24, (320, 180), 12),
    "vfr.mp4": (24, (180, 320), Fraction(576, 65)),
    "vp9.webm": (12, (180, 320), 12),
}
LOSES = {  # name: frames that remain, what the warning says
    "corrupt_middle.mp4": (
        [*range(40), *range(43, 72)],
        r"corrupt_middle.mp4: lost frames 40-42 \(3.33 s to 3.50 s\), which cannot be decoded; 69 of 72 "
        r"remain; frames 43-47, up to the next key frame, may look wrong; get a whole copy",
    ),
    "partial_faststart.mp4": (
        [*range(48)],
        r"partial_faststart.mp4: announces 72 frames, but the file is cut off: 48 frames \(0-47, to 3.92 s\)"
        r".*get a whole copy",
    ),
}
FAILS = {
    "audio_only.mp4": r"audio_only.mp4: has no video stream, only audio; give a file with pictures",
    "text.mp4": r"text.mp4: FFmpeg cannot read it as a video .*check that it is one",
    "truncated_faststart.mp4": r"announces 24 frames, but none can be decoded; .*get a whole copy",
    "truncated_nomoov.mp4": r"truncated_nomoov.mp4: its index \(moov\) is missing: .*get a whole copy",
    "zero.mp4": r"zero.mp4: is empty \(0 bytes\); copy or record it again",
}
MASKS = {  # name: ids, note
    "mask_gap_ids.png": ((3,), ""),
    "mask_gray_0_255.png": ((1,), "0 and 255 only: 255 is object 1"),
    "mask_void255.png": ((1,), "255 beside other ids: 255 is void"),
    "mask_wrong_size.png": ((1,), ""),
}
REFUSED = {
    "mask_empty.png": r"mask_empty.png: no object in this mask",
    "mask_rgb.png": r"mask_rgb.png: mask is RGB, expected one channel of object ids; save it as an indexed",
}


def test_no_trap_is_forgotten():
    known = {*WORKS, *LOSES, *FAILS, *MASKS, *REFUSED, "README.md"}
    assert {path.name for path in TRAPS.iterdir()} <= known


@pytest.mark.parametrize("name", WORKS)
def test_an_awkward_video_works(name):
    frames, size, fps = WORKS[name]
    with open_video(TRAPS / name) as video:
        images = list(video)
        assert (len(video), len(images), (video.height, video.width), video.fps) == (
            frames,
            frames,
            size,
            fps,
        )
        for index, image in enumerate(images):
            assert image.shape == (*size, 3)
            np.testing.assert_array_equal(video[index], image)


@pytest.mark.parametrize("name", WORKS)
def test_an_awkward_video_can_be_written_again_with_its_times(name, tmp_path):
    with open_video(TRAPS / name) as video:
        path, size = tmp_path / "o.mp4", {"height": video.height, "width": video.width}
        with VideoWriter(path, **size, times=video.times, audio_from=TRAPS / name) as output:
            for image in video:
                output.write(image)
        assert list(open_video(path).times) == list(video.times)


@pytest.mark.parametrize("name", LOSES)
def test_a_damaged_video_gives_what_can_be_decoded_and_a_warning(name):
    remaining, said = LOSES[name]
    with pytest.warns(UnspoolWarning, match=said):
        video = open_video(TRAPS / name)
    images = list(video)
    assert len(images) == len(video) == len(remaining)
    assert list(video.times) == [Fraction(n, 12) for n in remaining]
    for index in [*range(0, len(video), 7), len(video) - 1]:
        np.testing.assert_array_equal(video[index], images[index])


@pytest.mark.parametrize("name", LOSES)
def test_the_frames_away_from_the_damage_are_exact(name):
    whole = TRAPS.parent / "videos" / "intel_one-by-one-person-detection.mp4"
    with warnings.catch_warnings(action="ignore"):
        video = open_video(TRAPS / name)
    plain, _ = oracle.decode(TRAPS / name)
    np.testing.assert_array_equal(np.stack(list(video)), np.stack(plain))
    assert whole.exists()


def test_a_turned_video_is_upright():
    plain, _ = oracle.decode(TRAPS / "ok.mp4")
    np.testing.assert_array_equal(open_video(TRAPS / "rotated90.mp4")[3], np.rot90(plain[3], -1))


def test_the_times_of_a_variable_rate_are_the_files_own():
    gaps = np.diff([float(time) for time in open_video(TRAPS / "vfr.mp4").times])
    assert sorted({round(gap, 4) for gap in gaps.tolist()}) == [0.0417, 0.25]


@pytest.mark.parametrize("name", FAILS)
def test_a_file_that_is_no_video_is_an_error_with_a_remedy(name):
    with pytest.raises(VideoError, match=FAILS[name]) as caught:
        open_video(TRAPS / name)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", [*MASKS, *REFUSED])
def test_a_mask_used_as_a_video_is_a_video_of_one_frame(name):
    assert len(list(open_video(TRAPS / name))) == 1


@pytest.mark.parametrize("name", MASKS)
def test_an_awkward_mask_is_read_and_the_choice_is_told(name):
    mask = read_mask(TRAPS / name)
    assert (mask.ids, mask.note) == MASKS[name]


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_mask_is_an_error_with_a_remedy(name):
    with pytest.raises(MaskError, match=REFUSED[name]):
        read_mask(TRAPS / name)


@pytest.mark.parametrize("name", [*WORKS, *LOSES, *FAILS])
def test_a_video_used_as_a_mask_is_an_error_that_names_it(name):
    with pytest.raises(MaskError, match=re.escape(name)):
        read_mask(TRAPS / name)


def test_a_mask_of_the_wrong_size_is_refused_with_both_sizes():
    said = r"mask_wrong_size.png: mask is 427x240, but the video is 854x480; .*--resize-mask"
    with pytest.raises(MaskError, match=said):
        fit_mask(read_mask(TRAPS / "mask_wrong_size.png"), (480, 854))
