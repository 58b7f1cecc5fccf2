"""What `unspool eval suite` does: the tables of the papers, filled by ordinary evaluations."""

from unspool.verbs.suite.running import Order, carry_out_suite, said_once
from unspool.verbs.suite.tables import evaluation_of, read_data, read_tables

__all__ = ["Order", "carry_out_suite", "evaluation_of", "read_data", "read_tables", "said_once"]
