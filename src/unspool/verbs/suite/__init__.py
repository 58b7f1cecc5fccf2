"""What `unspool eval suite` does: the tables of the papers, filled by ordinary evaluations."""

from unspool.verbs.suite.running import Order, carry_out_suite
from unspool.verbs.suite.tables import read_data, read_tables

__all__ = ["Order", "carry_out_suite", "read_data", "read_tables"]
