"""How properties over a real database are searched."""

from hypothesis import Phase, settings


def database_property(examples: int, *, steps: int = 50) -> settings:
    """Settings for a property whose every example costs many transactions.

    A failing example is shown as it was found: making it smaller would take minutes. Add `Phase.shrink` to look into one.
    """
    return settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, phases=[Phase.reuse, Phase.generate]
    )
