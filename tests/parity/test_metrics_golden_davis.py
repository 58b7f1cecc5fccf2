"""The protocols of video object segmentation against the official evaluators."""

from collections.abc import Callable

import numpy as np
import pytest

from unspool.metrics import (
    ObjectScores,
    boundary_f,
    davis16_official,
    davis17_semi,
    davis17_unsup,
    jaccard,
    official_global_csv,
    official_per_sequence_csv,
    pooled_over_objects,
    vos_late,
)

Golden = Callable[[str], dict[str, np.ndarray]]


def close(found: object, expected: np.ndarray) -> None:
    assert np.allclose(np.asarray(found), expected, rtol=0, atol=1e-6, equal_nan=True)


def table(scores: ObjectScores, which: int) -> list[tuple[float, float, float]]:
    return [(s[which].mean, s[which].recall, s[which].decay) for s in scores.statistics()]


def sequences(file: dict[str, np.ndarray], suffix: str) -> list[str]:
    names = [key.removesuffix(suffix) for key in file if key.endswith(suffix)]
    assert names
    return names


def test_davis17_semi_per_frame_and_per_object(golden: Golden) -> None:
    file = golden("metrics/davis17_semi")
    for name in sequences(file, "_gt"):
        scores = davis17_semi(file[f"{name}_pred"], file[f"{name}_gt"])
        close(scores.j, file[f"{name}_J"])
        close(scores.f, file[f"{name}_F"])
        close(table(scores, 0), file[f"{name}_Jstat"])
        close(table(scores, 1), file[f"{name}_Fstat"])


def test_davis17_unsup_matches_as_the_official_tool(golden: Golden) -> None:
    file = golden("metrics/davis17_unsup")
    for name in sequences(file, "_gt"):
        scores = davis17_unsup(file[f"{name}_pred"], file[f"{name}_gt"]).in_proposal_order()
        close(scores.j, file[f"{name}_J"])
        close(scores.f, file[f"{name}_F"])


def test_davis16_frames_and_sequence(golden: Golden) -> None:
    file = golden("metrics/davis16")
    gt, pred = file["gt"], file["pred"]
    close([jaccard(p, g) for p, g in zip(pred, gt, strict=True)], file["J"])
    close([boundary_f(p, g) for p, g in zip(pred, gt, strict=True)], file["F"])
    scores = davis16_official(pred.astype(np.uint8) * 255, gt.astype(np.uint8) * 255)
    close(table(scores, 0)[0], file["J_seq"])
    close(table(scores, 1)[0], file["F_seq"])


@pytest.mark.parametrize("which", ["all", "skip"])
def test_vos_late_from_first_appearance(golden: Golden, which: str) -> None:
    file = golden("metrics/vos_late")
    scores = vos_late(file["pred"], file["gt"], skip_ends=which == "skip")
    assert list(scores.ids) == file[f"{which}_ids"].tolist()
    close(100 * np.nanmean(scores.j, axis=1), file[f"{which}_J"])
    close(100 * np.nanmean(scores.f, axis=1), file[f"{which}_F"])
    assert (~np.isnan(scores.j)).sum(axis=1).tolist() == file[f"{which}_count"].tolist()


def test_real_masks_of_davis17(golden: Golden) -> None:
    file = golden("metrics/real_davis17")
    for name in sequences(file, "_gt"):
        semi = davis17_semi(file[f"{name}_semi_pred"], file[f"{name}_gt"])
        close(table(semi, 0), file[f"{name}_semi_Jstat"])
        close(table(semi, 1), file[f"{name}_semi_Fstat"])
        unsup = davis17_unsup(file[f"{name}_unsup_pred"], file[f"{name}_gt"]).in_proposal_order()
        close(table(unsup, 0), file[f"{name}_unsup_Jstat"])
        close(table(unsup, 1), file[f"{name}_unsup_Fstat"])


@pytest.mark.parametrize("task", ["semi", "unsup"])
def test_the_official_result_files_byte_for_byte(golden: Golden, task: str) -> None:
    file = golden("metrics/official_cli")
    names = [str(name) for name in np.atleast_1d(file["sequences"])]
    protocol = {"semi": davis17_semi, "unsup": davis17_unsup}[task]
    scored = []
    for name in names:
        scores = protocol(file[f"{name}_res_{task}"], file[f"{name}_gt_{task}"])
        scored.append((name, scores.in_proposal_order() if task == "unsup" else scores))
    summary = pooled_over_objects(scores for _, scores in scored)
    close(list(summary.named().values()), file[f"{task}_global"])
    rows = [[*j, *f] for _, s in scored for j, f in zip(table(s, 0), table(s, 1), strict=True)]
    close(rows, file[f"{task}_per_object"])
    assert official_global_csv(summary) == str(file[f"{task}_global_csv"])
    assert official_per_sequence_csv(scored) == str(file[f"{task}_per_sequence_csv"])
