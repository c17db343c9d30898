"""Milepost on PostgreSQL with 4 servers."""

import os

os.environ["BENCH_OURS_SERVERS"] = "4"
from contestants.c_ours_pg import CONTESTANT  # noqa: F401
