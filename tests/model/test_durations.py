"""Durations come back from how they are shown."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from milepost.model.durations import duration_text, parse_duration


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=400)))
def test_a_duration_comes_back_from_its_text(duration: timedelta) -> None:
    assert parse_duration(duration_text(duration)) == duration
