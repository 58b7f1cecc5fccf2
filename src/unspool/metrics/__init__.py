"""Metrics: label maps in, numbers out; exact, without torch. Always (prediction, truth).

A protocol is a function of two iterables of label maps, read in step and one frame at a time, so that frames
can be decoded on the fly. What it returns is small and can be sent between processes: score sequences in as
many as there are cores, then average.
"""

from unspool.metrics.davis import davis17_semi, davis17_unsup, davis17_unsup_framewise, vos_late
from unspool.metrics.jf import Statistics, boundary_f, jaccard, statistics
from unspool.metrics.matching import ClusterScores, clustering
from unspool.metrics.overlap import (
    ObjectOverlaps,
    adjusted_rand_index,
    fg_ari_frame,
    fg_ari_solv,
    fg_ari_solv_quirks,
    fg_ari_video,
    mbo_frame,
    mbo_video,
    mean_over_objects,
    mean_over_videos,
    miou_frame,
    miou_solv,
    miou_solv_quirks,
    miou_video_hungarian,
)
from unspool.metrics.scores import (
    ObjectScores,
    Summary,
    official_global_csv,
    official_per_sequence_csv,
    pooled_over_frames,
    pooled_over_objects,
)
from unspool.metrics.single_object import (
    davis16_allframes,
    davis16_official,
    segtrack_fbms,
    single_object_oracle_frame,
    single_object_oracle_video,
)

__all__ = [
    "ClusterScores",
    "ObjectOverlaps",
    "ObjectScores",
    "Statistics",
    "Summary",
    "adjusted_rand_index",
    "boundary_f",
    "clustering",
    "davis16_allframes",
    "davis16_official",
    "davis17_semi",
    "davis17_unsup",
    "davis17_unsup_framewise",
    "fg_ari_frame",
    "fg_ari_solv",
    "fg_ari_solv_quirks",
    "fg_ari_video",
    "jaccard",
    "mbo_frame",
    "mbo_video",
    "mean_over_objects",
    "mean_over_videos",
    "miou_frame",
    "miou_solv",
    "miou_solv_quirks",
    "miou_video_hungarian",
    "official_global_csv",
    "official_per_sequence_csv",
    "pooled_over_frames",
    "pooled_over_objects",
    "segtrack_fbms",
    "single_object_oracle_frame",
    "single_object_oracle_video",
    "statistics",
    "vos_late",
]
