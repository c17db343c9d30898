"""Settings that nobody reads are named at start: a misspelt one would leave the default in force without a word.

They are named and not refused. An environment is shared, by later versions and by other programs of the same machine, and a server
that does not start after going back to the version before would be worse than a line that says what changes nothing.
"""

import os
from collections.abc import Mapping

from milepost.cli.console import say
from milepost.client.environment import ATTEMPT_VARIABLE, PREFIX, RUN_VARIABLE, names_of
from milepost.client.settings import ClientSettings
from milepost.sdk.settings import TaskSettings
from milepost.worker.settings import WorkerSettings

_SHARED_PREFIX = "TASK_RUN_METADATA_"
# Read where they are needed, and by no class of settings.
_OTHERS = frozenset({"MILEPOST_DEBUG", RUN_VARIABLE, ATTEMPT_VARIABLE})


def known_settings() -> frozenset[str]:
    """The name of every setting that some part of Milepost reads from the environment."""
    # Only here: a worker loads nothing of the server, unless its environment holds something else than settings of its own.
    from milepost.server.settings import ServerSettings, variable_of

    return _known_to_clients().union(map(variable_of, ServerSettings.model_fields))


def _known_to_clients() -> frozenset[str]:
    kinds = (WorkerSettings, ClientSettings, TaskSettings)
    return _OTHERS.union(PREFIX + name.upper() for kind in kinds for name in names_of(kind))


def name_unknown_settings(environment: Mapping[str, str] = os.environ) -> None:
    """Say which settings in the environment change nothing, and which ones may have been meant."""
    for line in unknown_settings(environment):
        say(line, style="yellow")


def unknown_settings(environment: Mapping[str, str]) -> list[str]:
    """A line for each setting in the environment that nobody reads."""
    candidates = {name for name in environment if name.startswith((PREFIX, _SHARED_PREFIX))}
    if candidates <= _known_to_clients():
        return []
    from difflib import get_close_matches

    known = known_settings()
    lines: list[str] = []
    for name in sorted(candidates - known):
        near = get_close_matches(name, known, 1, 0.7)
        advice = f"; did you mean {near[0]}?" if near else ""
        lines.append(f"{name} is not a setting of this version, and changes nothing{advice}")
    return lines
