"""What `eval linear`, `eval salient` and `eval incontext` plan and do: an encoder judged on pictures."""

from unspool.verbs_heads.incontext import incontext_plan
from unspool.verbs_heads.linear import linear_plan
from unspool.verbs_heads.salient import salient_plan
from unspool.verbs_heads.shared import Settings

__all__ = ["Settings", "incontext_plan", "linear_plan", "salient_plan"]
