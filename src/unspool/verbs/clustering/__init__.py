"""What `unspool eval clustering` plans and does: a job per video and one for the whole data set."""

from unspool.verbs.clustering.planning import clustering_plan, resolve_options

__all__ = ["clustering_plan", "resolve_options"]
