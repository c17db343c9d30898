from collections.abc import Iterator

import pytest

from support.served import HttpWorker, Served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A running server, shared by the tests of a module."""
    served = Served(tmp_path_factory.mktemp("served"))
    yield served
    served.stop()


@pytest.fixture(scope="module")
def worker(served: Served) -> HttpWorker:
    """A registered worker that offers the task `work`."""
    return HttpWorker(served)
