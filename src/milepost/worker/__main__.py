"""`python -m milepost.worker`: one executor process. Started by the supervisor, not by people."""

import gc
import sys

# All that is imported stays: looking for garbage in it took a fifteenth of the start.
gc.disable()
from milepost.worker.executor import main  # noqa: E402

gc.enable()

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
