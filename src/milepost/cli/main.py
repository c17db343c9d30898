"""The entry point of the `milepost` command: whatever goes wrong is one clear line.

It imports next to nothing itself, so that even a Ctrl-C during the imports ends quietly.
"""

import atexit
import gc
import os
import sys

EXIT_INTERRUPTED = 130
EXIT_MISTAKE = 70


def main() -> None:
    """Run the command that the arguments name."""
    # Python would look for garbage among all that was loaded, once more before it goes: a tenth of the time of a short command.
    atexit.register(gc.freeze)
    try:
        from milepost.cli.commands import app
        from milepost.cli.console import say_error, tolerate_narrow_encodings
        from milepost.errors import MilepostError
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    tolerate_narrow_encodings()
    # Whoever gives a command has asked for the server of this folder, also from a test.
    os.environ.setdefault("MILEPOST_DEV_SERVER", "1")
    try:
        app(prog_name="milepost")
    except MilepostError as error:
        say_error(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read the output has gone. Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # a mistake in this program; who uses it can do little with a traceback
        if os.environ.get("MILEPOST_DEBUG"):
            raise
        say_error(f"{type(error).__name__}: {error} (a mistake in Milepost; MILEPOST_DEBUG=1 shows where)")
        sys.exit(EXIT_MISTAKE)
