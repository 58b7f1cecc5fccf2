"""What `unspool eval linear` and `eval salient` plan and do: an encoder judged on labelled pictures."""

from unspool.verbs_heads.linear import linear_plan
from unspool.verbs_heads.salient import salient_plan
from unspool.verbs_heads.shared import Settings

__all__ = ["Settings", "linear_plan", "salient_plan"]
