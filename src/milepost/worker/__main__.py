"""`python -m milepost.worker`: one executor process. Started by the supervisor, not by people."""

import gc
import sys

# All that is imported stays: looking for garbage in it, now and while the user's code is loaded, took a tenth of the start.
gc.disable()
from milepost.worker.executor import main  # noqa: E402

gc.freeze()
gc.set_threshold(10_000, 20, 50)
gc.enable()

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
