"""BA's evaluation: its version of the DAVIS tool, and the ARI and IoU variants of the rows beside it."""

from collections.abc import Callable

import numpy as np

from unspool.metrics import (
    ObjectScores,
    davis17_unsup,
    davis17_unsup_framewise,
    fg_ari_frame,
    fg_ari_solv,
    fg_ari_video,
    mbo_frame,
    mbo_video,
    mean_over_objects,
    miou_frame,
    miou_solv,
    miou_video_hungarian,
)

Golden = Callable[[str], dict[str, np.ndarray]]


def close(found: object, expected: np.ndarray) -> None:
    assert np.allclose(np.asarray(found), expected, rtol=0, atol=1e-5, equal_nan=True)


def proposals_and_objects(file: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Cluster o becomes proposal o + 1, since the background cluster is a proposal too; void is 255."""
    void = file["void"].astype(bool)
    objects = np.where(file["gt"] <= int(file["n_obj"]), file["gt"], 0)
    clusters = np.where(file["pred"] < int(file["n_pred"]), file["pred"].astype(np.uint16) + 1, 0)
    return clusters, np.where(void, 255, objects).astype(np.uint8)


def check(scores: ObjectScores, file: dict[str, np.ndarray], name: str) -> None:
    ordered = scores.in_proposal_order()
    close(ordered.j, file[f"{name}_J"])
    close(ordered.f, file[f"{name}_F"])
    j, f = zip(*ordered.statistics(), strict=True)
    close([(s.mean, s.recall, s.decay) for s in j], file[f"{name}_Jstat"])
    close([(s.mean, s.recall, s.decay) for s in f], file[f"{name}_Fstat"])


def test_the_assignment_of_every_frame_is_ba_s(golden: Golden) -> None:
    file = golden("ba/davis_eval")
    check(davis17_unsup_framewise(*proposals_and_objects(file)), file, "ba")


def test_the_assignment_of_the_sequence_is_the_official_one(golden: Golden) -> None:
    file = golden("ba/davis_eval")
    check(davis17_unsup(*proposals_and_objects(file)), file, "official")


def test_a_single_proposal_is_joined_by_empty_ones(golden: Golden) -> None:
    file = golden("ba/davis_eval")
    proposals, objects = proposals_and_objects(file)
    first = np.where(proposals == 1, 1, 0).astype(np.uint8)
    for protocol, name in ((davis17_unsup_framewise, "ba"), (davis17_unsup, "official")):
        close(protocol(first, objects).in_proposal_order().j, file[f"{name}_J_oneprop"])


def test_solv_s_matching_miou_and_ari(golden: Golden) -> None:
    file = golden("ba/fgari_miou")
    pred, gt = file["pred"], file["gt"]
    found = miou_solv(pred, gt)
    relabelled = np.zeros_like(gt)
    for label, segment in zip(found.ids, found.segments[:, 0], strict=True):
        relabelled[pred == segment] = label
    assert np.array_equal(relabelled, file["solv_matched"])
    close(mean_over_objects([found]), file["solv_miou"])
    close(fg_ari_solv(pred, gt), file["solv_fg_ari"])


def test_ari_of_raw_labels(golden: Golden) -> None:
    file = golden("ba/fgari_miou")
    pred, gt = file["pred"], file["gt"]
    close(fg_ari_frame(pred, gt), file["perframe_raw_fg_ari"])
    close(fg_ari_video(pred, gt), file["video_fg_ari"].item())
    frames = [fg_ari_frame([p], [t]) for p, t in zip(pred, gt, strict=True)]
    close(np.nan_to_num(frames, nan=1.0), file["image_fg_ari_per_frame"])


def test_iou_of_the_video_and_of_its_frames(golden: Golden) -> None:
    file = golden("ba/fgari_miou")
    pred, gt = file["pred"], file["gt"]
    for name, video, frame in (
        ("overlap", mbo_video, mbo_frame),
        ("hungarian", miou_video_hungarian, miou_frame),
    ):
        of_video, of_frames = video(pred, gt), frame(pred, gt)
        columns = np.array(of_video.ids) - 1
        close(of_video.iou.T, file[f"video_iou_{name}"][:, columns])
        close(np.nan_to_num(of_frames.iou).T, file[f"image_iou_{name}"][:, columns])
