"""`python -m milepost.worker`: one executor process. Started by the supervisor, not by people."""

import sys

from milepost.worker.executor import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
