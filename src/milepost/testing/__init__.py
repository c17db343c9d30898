"""Testing tasks without a server: see docs/testing.md.

`run_task` runs a task and its children in memory, `Sandbox` gives a hold on what happens and when, `context` makes a `Context` for
functions that take one.
"""

from milepost.testing.contexts import LocalContext, context
from milepost.testing.results import SandboxRun
from milepost.testing.sandbox import Sandbox, arun_task, run_task

__all__ = ["LocalContext", "Sandbox", "SandboxRun", "arun_task", "context", "run_task"]
