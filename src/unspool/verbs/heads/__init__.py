"""What `eval linear`, `eval salient` and `eval incontext` plan and do: an encoder judged on pictures."""

from unspool.verbs.heads.incontext import incontext_plan
from unspool.verbs.heads.linear import linear_plan
from unspool.verbs.heads.salient import salient_plan
from unspool.verbs.heads.shared import Settings

__all__ = ["Settings", "incontext_plan", "linear_plan", "salient_plan"]
