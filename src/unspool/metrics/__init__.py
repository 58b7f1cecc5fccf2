"""Metrics: label maps in, numbers out; exact, without torch. Always (prediction, truth)."""

from unspool.metrics.davis import (
    ObjectScores,
    Summary,
    davis16_allframes,
    davis16_official,
    davis17_semi,
    davis17_unsup,
    davis17_unsup_framewise,
    official_global_csv,
    official_per_sequence_csv,
    pooled_over_frames,
    pooled_over_objects,
    vos_late,
)
from unspool.metrics.jf import Statistics, boundary_f, jaccard, statistics

__all__ = [
    "ObjectScores",
    "Statistics",
    "Summary",
    "boundary_f",
    "davis16_allframes",
    "davis16_official",
    "davis17_semi",
    "davis17_unsup",
    "davis17_unsup_framewise",
    "jaccard",
    "official_global_csv",
    "official_per_sequence_csv",
    "pooled_over_frames",
    "pooled_over_objects",
    "statistics",
    "vos_late",
]
