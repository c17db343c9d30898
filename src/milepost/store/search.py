"""The search index in the database: its rows, the runs whose rows are behind, and candidates for a filter, newest first.

A candidate may match; a run that is none does not match. The documents decide (`reading/search.py`).
"""

from collections.abc import Callable, Container, Iterable, Sequence
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import (
    CompoundSelect,
    Connection,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    intersect,
    literal,
    literal_column,
    or_,
    select,
    union,
    update,
)
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import FromClause

from milepost.store import runs as run_store
from milepost.store.metadata_values import IndexedValue, Kind, Term, Trace, terms_of, traces_of
from milepost.store.runs import RunFilter
from milepost.store.schema import changes, documents, metadata_values, run_tags, runs
from milepost.store.statements import HasBytes, Lookup, Statement, among

CHUNK = 500
# Up to this many rows are gathered and sorted; where there are more, the newest runs are looked at one after the other.
GATHERED_MAX = 5000

_NAMES = ("run_id", "path", "kind", "number", "text")
_INSERT = Statement(insert(metadata_values), _NAMES)
_DELETE = delete(metadata_values).where(
    and_(*(metadata_values.c[name] == bindparam(f"old_{name}") for name in _NAMES))
)
_BY_RUNS = Lookup(select(*(metadata_values.c[name] for name in _NAMES)), metadata_values.c.run_id)
# A literal, so that the partial index is seen to hold it.
_IS_UNINDEXED: ColumnElement[bool] = literal_column("runs.metadata_unindexed") == literal_column("1")


# --- writing -----------------------------------------------------------------------------------------------


def unindexed_ids(connection: Connection, *, limit: int) -> list[str]:
    """Runs whose document may differ from its rows, oldest first."""
    return list(
        connection.execute(select(runs.c.id).where(_IS_UNINDEXED).order_by(runs.c.id).limit(limit)).scalars()
    )


def replace_values(connection: Connection, documents: dict[str, set[IndexedValue]]) -> None:
    """Make these the rows of these runs, and note that they are indexed. Rows that stay are not written."""
    ids = list(documents)
    present: dict[str, set[IndexedValue]] = {run_id: set() for run_id in ids}
    for run_id, *value in _BY_RUNS.read(connection, ids):
        present[run_id].add((value[0], value[1], value[2], value[3]))
    gone = [(run_id, *value) for run_id in ids for value in present[run_id] - documents[run_id]]
    if gone:
        connection.execute(
            _DELETE, [{f"old_{name}": part for name, part in zip(_NAMES, row, strict=True)} for row in gone]
        )
    new = [(run_id, *value) for run_id in ids for value in documents[run_id] - present[run_id]]
    # Neighbours in the large index come one after the other.
    new.sort(key=itemgetter(1, 2, 3, 4, 0))
    _INSERT.write(connection, new)
    for start in range(0, len(ids), CHUNK):
        connection.execute(
            update(runs)
            .where(among(connection, runs.c.id, ids[start : start + CHUNK]))
            .values(metadata_unindexed=0)
        )


# --- searching ---------------------------------------------------------------------------------------------


class _Stream(msgspec.Struct, frozen=True):
    """Runs that are in all of some selections, in order. Each selection gives a column of run ids."""

    selections: list[tuple[Select[str], ColumnElement[str]]]

    def statement(
        self, *, limit: int, after: str | None, before: str | None
    ) -> Select[str] | CompoundSelect[str]:
        """The next runs behind a cursor."""
        selects: list[Select[str]] = []
        for selection, run_id in self.selections:
            if before is not None:
                selection = selection.where(run_id > before)
            elif after is not None:
                selection = selection.where(run_id < after)
            selects.append(selection)
        # Selections that are in order already are merged: nothing is gathered or sorted.
        joined = selects[0] if len(selects) == 1 else intersect(*selects)
        run_id = self.selections[0][1] if len(selects) == 1 else joined.selected_columns[0]
        return joined.order_by(run_id if before is not None else run_id.desc()).limit(limit)


class Search:
    """A filter with `metadata`, planned against what the index holds now. Belongs to one transaction.

    Each term is first counted, up to a bound. Where one is of a single value, its rows are the runs in order, and are read
    off until there are enough; where the rarest is small, its runs are gathered; else the runs are looked at newest first. Runs that
    are not indexed yet are candidates where the text of their documents does not rule it out.
    """

    def __init__(self, connection: Connection, filter: RunFilter) -> None:
        assert filter.metadata is not None
        self._connection = connection
        self._conditions = run_store.conditions(filter)
        terms = terms_of(filter.metadata)
        self._absent = terms.absent
        # For each thing that is required: where it may be.
        counted = [self._counted(group) for group in terms.required]
        self._groups = [list(group) for group in counted]
        self._streams: list[_Stream] = []
        if all(counted):
            self._streams += self._plan([sum(group.values()) for group in counted], filter)
        if unindexed_ids(connection, limit=1):
            may_match = [_may_hold(trace) for trace in traces_of(filter.metadata)]
            self._streams.append(self._runs([_IS_UNINDEXED, *may_match]))

    def candidates(self, *, limit: int, after: str | None = None, before: str | None = None) -> list[str]:
        """Up to `limit` runs that may match: older than `after`, newest first; or newer than `before`, oldest first."""
        found: set[str] = set()
        for stream in self._streams:
            statement = stream.statement(limit=limit, after=after, before=before)
            found.update(self._connection.execute(statement).scalars())
        return sorted(found, reverse=before is None)[:limit]

    def _counted(self, group: Iterable[Term]) -> dict[Term, int]:
        """The terms that find anything, those for incomplete documents included, with how many rows they find."""
        terms = dict.fromkeys(each for term in group for each in (term, *term.incomplete))
        counts = {
            term: self._count(select(literal(1)).where(*_stands(term, metadata_values))) for term in terms
        }
        return {term: count for term, count in counts.items() if count}

    def _count(self, statement: Select[int]) -> int:
        """How many rows there are, but at most one more than may be gathered."""
        rows = statement.limit(GATHERED_MAX + 1).subquery()
        return self._connection.execute(select(func.count()).select_from(rows)).scalar_one()

    def _plan(self, sizes: Sequence[int], filter: RunFilter) -> list[_Stream]:
        order = sorted(range(len(sizes)), key=lambda number: sizes[number])
        own_size, own = self._own(filter)
        if own_size < min([*sizes, GATHERED_MAX]):
            return [self._runs([*own, *self._rest(runs.c.id)])]
        for number in order:
            group = self._groups[number]
            if all(term.is_point for term in group):
                is_long = sizes[number] > GATHERED_MAX
                return [self._rows(term, without=number, merge=is_long) for term in group]
            if sizes[number] <= GATHERED_MAX:
                selects = [
                    select(metadata_values.c.run_id).where(*_stands(each, metadata_values)) for each in group
                ]
                return [
                    self._runs([runs.c.id.in_(union(*selects)), *self._rest(runs.c.id, without={number})])
                ]
        return [self._runs(self._rest(runs.c.id))]

    def _own(self, filter: RunFilter) -> tuple[int, list[ColumnElement[bool]]]:
        """How many runs there are by what an index of their own tells quickly, and how they are found by it."""
        if filter.batch_id is not None or filter.parent_id is not None:
            family = RunFilter(batch_id=filter.batch_id, parent_id=filter.parent_id)
            return self._count(select(literal(1)).where(*run_store.conditions(family))), []
        if filter.tags:
            has_tag = run_tags.c.tag.in_(filter.tags)
            tagged = runs.c.id.in_(select(run_tags.c.run_id).where(has_tag))
            return self._count(select(literal(1)).where(has_tag)), [tagged]
        return GATHERED_MAX, []

    def _runs(self, conditions: Sequence[ColumnElement[bool]]) -> _Stream:
        return _Stream([(select(runs.c.id).where(*conditions, *self._conditions), runs.c.id)])

    def _rows(self, term: Term, *, without: int, merge: bool) -> _Stream:
        """The runs that have one value, in their order in the index. With `merge` their other values are read off in order too."""
        points = {
            number: group[0]
            for number, group in enumerate(self._groups)
            if merge and number != without and len(group) == 1 and group[0].is_point
        }
        walked = metadata_values.alias()
        run_id = walked.c.run_id
        first = select(run_id).where(*_stands(term, walked), *self._rest(run_id, without={without, *points}))
        if self._conditions:
            first = first.where(exists().where(runs.c.id == run_id, *self._conditions))
        others = [
            select(metadata_values.c.run_id).where(*_stands(point, metadata_values))
            for point in points.values()
        ]
        return _Stream([(first, run_id), *((other, metadata_values.c.run_id) for other in others)])

    def _rest(self, run_id: ColumnElement[str], *, without: Container[int] = ()) -> list[ColumnElement[bool]]:
        """What the other terms say of a run."""
        required = [
            or_(*(_has(term, run_id) for term in group))
            for number, group in enumerate(self._groups)
            if number not in without
        ]
        return required + [~_has(term, run_id) for term in self._absent]


def _may_hold(trace: Trace) -> ColumnElement[bool]:
    """Runs whose document may hold a trace, by the text of what it is made of: given at trigger, saved, changed since."""
    saved = exists().where(documents.c.run_id == runs.c.id, _holds(documents.c.value, trace))
    # Of the run that is looked at, two selects further out: nothing else would say so, and any document's version would be taken.
    saved_version = (
        select(documents.c.version).where(documents.c.run_id == runs.c.id).correlate(runs).scalar_subquery()
    )
    since = [changes.c.run_id == runs.c.id, changes.c.version > func.coalesce(saved_version, 0)]
    changed = (
        exists().where(*since)
        if trace.is_number
        else exists().where(*since, _holds(changes.c.operations, trace))
    )
    return or_(
        _holds(runs.c.trigger_metadata, trace),
        # Such a large one is seldom, and elsewhere.
        runs.c.large.contains("trigger_metadata"),
        and_(runs.c.metadata_version > 0, or_(saved, changed)),
    )


def _holds(column: ColumnElement[Any], trace: Trace) -> ColumnElement[bool]:
    return or_(*(HasBytes(column, part) for part in trace.any_of))


def _has(term: Term, run_id: ColumnElement[str]) -> ColumnElement[bool]:
    values = metadata_values.alias()
    return exists().where(values.c.run_id == run_id, *_stands(term, values))


def _stands(term: Term, values: FromClause) -> list[ColumnElement[bool]]:
    """The rows of one step."""
    columns = values.c
    if term.is_below:
        low, high = term.paths_below
        return [columns.path > low, columns.path < high]
    conditions: list[ColumnElement[bool]] = [columns.path == term.path]
    if term.kind is None:
        return conditions
    conditions.append(columns.kind == int(term.kind))
    is_text = term.kind is Kind.TEXT
    bounded: ColumnElement[float | str] = columns.text if is_text else columns.number
    if term.is_point:
        conditions.append(bounded == ((0.0 if not is_text else "") if term.low is None else term.low))
        conditions.append(columns.number == 0.0 if is_text else columns.text == "")
        return conditions
    if is_text:
        conditions.append(columns.number == 0.0)
    for bound, is_outside, inner, outer in (
        (term.low, term.after_low, bounded.__ge__, bounded.__gt__),
        (term.high, term.before_high, bounded.__le__, bounded.__lt__),
    ):
        if bound is not None:
            comparison: Callable[[float | str], ColumnElement[bool]] = outer if is_outside else inner
            conditions.append(comparison(bound))
    return conditions
