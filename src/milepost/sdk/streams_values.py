"""The chunks that a value becomes: JSON text by the value rules of metadata, and bytes as the text that they are."""

from __future__ import annotations

import base64
import codecs
from typing import Any, cast

from milepost.client.shape import Shape
from milepost.errors import MetadataValueError, StreamChunkTooLargeError, StreamValueError
from milepost.model.jsonvalue import encode, to_json
from milepost.model.typed import Misfit
from milepost.protocol.streams import BYTES_KEY, CHUNK_BYTES_MAX

ERROR_CHARACTERS_MAX = 10_000


class ChunkEncoder:
    """Turns the values of one writer into chunks.

    Bytes are text to begin with: they are decoded as UTF-8, and a character that is cut between two values goes whole with the second.
    What turns out to be no UTF-8 travels in base64, marked: `{"$bytes": "AAE="}`. Nothing is lost and nothing changed: text and bytes
    of all chunks joined are the bytes that came. In a stream with a type, bytes are whatever the type makes of them.

    Args:
        key: the stream's, for messages.
        shape: the type of its values, where there is one.
    """

    __slots__ = ("_begun", "_key", "_shape")

    def __init__(self, key: str, shape: Shape[Any] | None = None) -> None:
        self._key = key
        self._shape = shape
        # The first bytes of a character whose others are still to come.
        self._begun = b""

    def encode(self, value: object) -> list[bytes]:
        """The chunks of the next value, mostly one. Raises StreamValueError, StreamChunkTooLargeError."""
        if self._shape is not None:
            chunk = self._typed(self._shape, value)
        elif isinstance(value, bytes | bytearray | memoryview):
            return self._of_bytes(bytes(cast("bytes", value)))
        else:
            chunk = self._plain(value)
        self._bounded(chunk)
        return [*self.rest(), chunk] if self._begun else [chunk]

    def encode_alone(self, value: object) -> bytes:
        """The one chunk of a value that stands for itself. Raises as `encode`."""
        if self._shape is None and isinstance(value, bytes | bytearray | memoryview):
            data = bytes(cast("bytes", value))
            try:
                chunk = encode(data.decode())
            except UnicodeDecodeError:
                chunk = _marked(data)
            return self._bounded(chunk)
        [chunk] = self.encode(value)
        return chunk

    def _bounded(self, chunk: bytes) -> bytes:
        if len(chunk) > CHUNK_BYTES_MAX:
            raise StreamChunkTooLargeError(key=self._key, size=len(chunk), limit=CHUNK_BYTES_MAX)
        return chunk

    def rest(self) -> list[bytes]:
        """What is left of bytes whose character never became whole, at the end or where something else than bytes comes."""
        begun, self._begun = self._begun, b""
        return [_marked(begun)] if begun else []

    def _typed(self, shape: Shape[Any], value: object) -> bytes:
        try:
            return shape.write(value)
        except Misfit as misfit:
            raise StreamValueError(
                f"stream {self._key!r:.100}: {misfit.describe('chunk')}", key=self._key
            ) from None

    def _plain(self, value: object) -> bytes:
        try:
            return encode(to_json(value, place="chunk"))
        except MetadataValueError as error:
            raise StreamValueError(f"stream {self._key!r:.100}: {error.message}", key=self._key) from None

    def _of_bytes(self, value: bytes) -> list[bytes]:
        if not value:
            return []
        data = self._begun + value
        try:
            text, taken = codecs.utf_8_decode(data, "strict", False)
        except UnicodeDecodeError:
            chunk, begun = _marked(data), b""
        else:
            chunk, begun = encode(text) if text else b"", data[taken:]
        self._bounded(chunk)
        self._begun = begun
        return [chunk] if chunk else []


def _marked(data: bytes) -> bytes:
    return encode({BYTES_KEY: base64.b64encode(data).decode("ascii")})
