"""How properties over a real database are searched."""

import os

from hypothesis import Phase, settings

_EXPLORES = os.environ.get("MILEPOST_TEST_PROFILE") == "explore"


def database_property(examples: int, *, steps: int = 50) -> settings:
    """Settings for a property whose every example costs many transactions.

    So many examples are for `make explore`; the suite, whose examples are the same each time, takes half of them.
    A failing example is shown as it was found: making it smaller would take minutes. Add `Phase.shrink` to look into one.
    """
    return settings(
        max_examples=examples if _EXPLORES else (examples + 1) // 2,
        stateful_step_count=steps,
        deadline=None,
        phases=[Phase.reuse, Phase.generate],
    )
