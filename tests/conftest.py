"""Tests that run side by side (`pytest -n`) share the cores: one thread each, and for what they start."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
