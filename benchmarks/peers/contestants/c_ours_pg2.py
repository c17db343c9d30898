"""Milepost on PostgreSQL with 2 servers."""

import os

os.environ["BENCH_OURS_SERVERS"] = "2"
from contestants.c_ours_pg import CONTESTANT  # noqa: F401
