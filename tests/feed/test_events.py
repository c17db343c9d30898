"""The text format of event streams: however it is cut, the same events come out, in time that grows with the bytes alone."""

from hypothesis import given
from hypothesis import strategies as st

from milepost.protocol.feed import PING, EventReader, encode_event

_events = st.lists(
    st.tuples(
        st.sampled_from(["snapshot", "delta", "end"]),
        st.text(st.characters(codec="utf-8", exclude_characters="\r\n")),
    ),
    max_size=6,
)


@given(_events, st.data())
def test_a_stream_may_be_cut_anywhere(events: list[tuple[str, str]], data: st.DataObject) -> None:
    stream = b"".join(
        encode_event(event, text.encode()) + (PING if data.draw(st.booleans()) else b"")
        for event, text in events
    )
    reader, found = EventReader(), list[tuple[str, bytes]]()
    while stream:
        size = data.draw(st.integers(0, len(stream)))
        # An empty piece now and then, and never two.
        for piece in (stream[:size], stream[size : size + 1]):
            found += reader.feed(piece)
        stream = stream[size + 1 :]
    assert found == [(event, text.encode()) for event, text in events]


def test_a_long_line_in_small_pieces_takes_no_longer_than_its_bytes() -> None:
    """A reader that looked at everything once more with each piece would take minutes: it would look at four terabytes."""
    piece, pieces = b"x" * 256, 130_000
    reader = EventReader()
    assert reader.feed(b"event: snapshot\ndata: ") == []
    for _ in range(pieces):
        assert reader.feed(piece) == []
    [(event, data)] = reader.feed(b"\n\n")
    assert (event, len(data)) == ("snapshot", 256 * pieces)
