"""Documents for readers: the newest one, and what of it is shown."""

import sys
from collections.abc import Sequence
from typing import TypeAlias

import msgspec
from sqlalchemy import Connection

from milepost.errors import RunNotFoundError
from milepost.model.counted import KNOWN_MAX
from milepost.model.document import Document
from milepost.model.operations import decode_operations
from milepost.model.shown_keys import Keys, shown_document
from milepost.store import documents as document_store
from milepost.store import runs as run_store
from milepost.store.documents import ChangeRow, Snapshot

Documents: TypeAlias = dict[str, tuple[msgspec.Raw, int]]
"""Documents as JSON with their versions, by run."""


def read_documents(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[bytes, int]]:
    """Documents as JSON with their versions. One of which the store has the newest text is not decoded."""
    given = run_store.load_given_documents(connection, ids)
    written = [run_id for run_id, document in given.items() if document.is_written]
    snapshots, tails = document_store.load_written(connection, written)
    moved = [run_id for run_id, document in given.items() if document.has_moved and run_id not in snapshots]
    large = run_store.load_large(connection, moved, "trigger_metadata") if moved else {}
    documents: dict[str, tuple[bytes, int]] = {}
    for run_id, document in given.items():
        value = large[run_id].encode() if run_id in large else document.value
        snapshot = snapshots.get(run_id) or document_store.given_snapshot(run_id, value)
        if run_id in tails:
            newest = opened(snapshot)
            for change in tails[run_id]:
                replay(newest, change)
            documents[run_id] = newest.encode(), newest.version
        else:
            documents[run_id] = snapshot.value, snapshot.version
    return documents


def shown_documents(connection: Connection, ids: Sequence[str], keys: Keys = None) -> Documents:
    """The newest documents, with these keys only."""
    return {
        run_id: (msgspec.Raw(shown_document(value, keys)), version)
        for run_id, (value, version) in read_documents(connection, ids).items()
    }


def only_keys(documents: Documents, keys: Keys) -> Documents:
    """The documents with these keys only."""
    if keys is None:
        return documents
    return {
        run_id: (msgspec.Raw(shown_document(bytes(value), keys)), version)
        for run_id, (value, version) in documents.items()
    }


def newest(connection: Connection, run_id: str) -> tuple[bytes, int]:
    """The document of a run as JSON, and its version. Raises RunNotFoundError."""
    documents = read_documents(connection, [run_id])
    if run_id not in documents:
        raise RunNotFoundError(f"there is no run {run_id!r}")
    return documents[run_id]


def some_counted(connection: Connection, run_id: str) -> list[bytes]:
    """Some of the `once` ids that a document has counted, as many as a worker remembers."""
    return document_store.some_counted(connection, run_id, limit=KNOWN_MAX)


def opened(snapshot: Snapshot) -> Document:
    """A saved document, to be led on. It has no limit: what was applied once fits, also after the limit was lowered."""
    return Document.load(snapshot.value, version=snapshot.version, limit=sys.maxsize, counted=None)


def replay(document: Document, change: ChangeRow) -> None:
    """Lead a document on by a change that was committed."""
    for operation in decode_operations(change.operations):
        document.apply(operation)
    document.version = change.version
