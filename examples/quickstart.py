"""The smallest Milepost program: one task whose progress can be watched.

milepost dev examples/quickstart.py        # in one terminal
python examples/quickstart.py              # in another
"""

import time

from milepost import metadata, task


@task
def count_words(text: str) -> int:
    """Count words, slowly enough to be watched."""
    words = text.split()
    for word in metadata.track(words):
        time.sleep(0.2)
        metadata.set("latest", word)
    return len(words)


if __name__ == "__main__":
    handle = count_words.trigger("the quick brown fox jumps over the lazy dog")
    for run in handle.subscribe():
        print(run.status, run.metadata)
    print("words:", handle.result().unwrap())
