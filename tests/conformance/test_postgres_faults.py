"""What holds for PostgreSQL alone: connections that are lost at any moment, and what is said when the database cannot be used."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.pq import ExecStatus, PipelineStatus
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from conformance.rows import insert, new_run, run_name
from milepost.engine.commands import Trigger, TriggerItem
from milepost.engine.transaction import Transaction
from milepost.errors import CommitUnknownError, ConfigurationError, UnavailableError
from milepost.model.operations import Set
from milepost.protocol.triggering import TriggerOptions
from milepost.store import postgres as kind
from milepost.store import runs
from milepost.store.database import Store
from milepost.store.runs import RunFilter
from milepost.store.statements import array, execute
from support import held_rows, postgres
from support.world import WorkerDouble, World

SERVER = postgres.server


@pytest.fixture
def name() -> Iterator[str]:
    name = SERVER().create_migrated_database()
    yield name
    SERVER().drop_database(name)


@pytest.fixture
def store(name: str) -> Iterator[Store]:
    store = Store(SERVER().url(name))
    yield store
    store.close()


def ids(store: Store) -> list[str]:
    with store.read() as connection:
        return runs.list_ids(connection, RunFilter(), limit=10)


def end_connections(name: str) -> None:
    with SERVER().administer() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
            [name],
        )


# --- connections that get lost -----------------------------------------------------------------------------


def test_connections_that_were_ended_between_groups_are_not_noticed(store: Store, name: str) -> None:
    insert(store, new_run(1))
    assert ids(store) == [run_name(1)]
    for number in (2, 3):
        end_connections(name)
        insert(store, new_run(number))
        assert len(ids(store)) == number


def test_a_connection_that_is_ended_in_the_middle_of_a_group_undoes_it(store: Store, name: str) -> None:
    def insert_and_lose_it() -> None:
        with store.write() as connection:
            runs.insert_runs(connection, [new_run(1)])
            end_connections(name)
            runs.insert_runs(connection, [new_run(2)])

    with pytest.raises(UnavailableError, match=r"terminating connection|closed the connection"):
        insert_and_lose_it()
    insert(store, new_run(3))
    assert ids(store) == [run_name(3)]


def test_a_connection_that_ended_within_several_statements_is_replaced(store: Store) -> None:
    """Its driver still waits for answers to what it has sent in one go, does not say that it is closed, and can undo nothing."""
    insert(store, new_run(1))
    writing = store._connection  # pyright: ignore[reportPrivateUsage]
    assert writing is not None
    driver: Any = writing.connection.driver_connection
    driver.pgconn.enter_pipeline_mode()
    driver.pgconn.send_query_params(b"SELECT 1", None)
    insert(store, new_run(2))
    assert len(ids(store)) == 2
    assert driver is not store._connection.connection.driver_connection  # type: ignore[union-attr]  # pyright: ignore


def test_a_connection_that_is_ended_while_somebody_reads_may_be_read_again(store: Store, name: str) -> None:
    insert(store, new_run(1))

    def read_and_lose_it() -> None:
        with store.read() as connection:
            end_connections(name)
            runs.list_ids(connection, RunFilter(), limit=10)

    for _ in range(6):
        with pytest.raises(
            UnavailableError, match=r"cannot be read now.*(terminating|closed the) connection"
        ):
            read_and_lose_it()
    assert ids(store) == [run_name(1)]


def test_a_server_that_hangs_in_a_group_loses_it_and_the_others_go_on(
    store: Store, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "_BEGIN_GROUP", kind._BEGIN_GROUP.replace(f"'{kind.IDLE_SECONDS}s'", "'200ms'"))
    other = Store(SERVER().url(name))
    begun, go_on = Event(), Event()

    def hang() -> None:
        with store.write() as connection:
            runs.insert_runs(connection, [new_run(1)])
            begun.set()
            go_on.wait(60)
            runs.insert_runs(connection, [new_run(2)])

    failures: list[BaseException] = []

    def hang_and_fail() -> None:
        try:
            hang()
        except UnavailableError as error:
            failures.append(error)

    thread = Thread(target=hang_and_fail)
    thread.start()
    assert begun.wait(60)
    insert(other, new_run(3))
    go_on.set()
    thread.join()
    assert len(failures) == 1
    assert ids(other) == [run_name(3)]
    insert(store, new_run(4))
    other.close()


class LosingConnection(psycopg.Connection[Any]):
    """Loses its answer to `COMMIT`, after or before the database has heard it."""

    lose: Callable[["LosingConnection", str], None] | None = None

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        return _LosingCursor(self)


class _LosingCursor(psycopg.Cursor[Any]):
    def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        lose = LosingConnection.lose
        if query == "COMMIT" and lose is not None:
            LosingConnection.lose = None
            lose(self.connection, query)  # type: ignore[arg-type]
        return super().execute(query, *arguments, **options)


@pytest.fixture
def losing_store(name: str) -> Iterator[Store]:
    store = Store(SERVER().url(name), connection_class=LosingConnection)
    yield store
    LosingConnection.lose = None
    store.close()


def test_a_commit_whose_answer_is_lost_was_carried_out_and_is_so_said(
    losing_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise the group would be tried once more, and be stored twice."""

    def commit_and_cut(connection: psycopg.Connection[Any], query: str) -> None:
        driver = connection.pgconn
        # The writes of the group have been sent before, and nobody has waited for an answer yet.
        driver.send_query_params(query.encode(), None)
        driver.pipeline_sync()
        while (result := driver.get_result()) is None or result.status != ExecStatus.PIPELINE_SYNC:
            assert result is None or result.status in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)
        driver.finish()

    LosingConnection.lose = commit_and_cut
    with caplog.at_level(logging.WARNING):
        insert(losing_store, new_run(1))
    assert "was carried out" in caplog.text
    assert ids(losing_store) == [run_name(1)]
    insert(losing_store, new_run(2))
    assert len(ids(losing_store)) == 2


def test_a_commit_is_looked_for_also_where_all_writes_were_sent_before(losing_store: Store) -> None:
    LosingConnection.lose = lambda connection, query: connection.pgconn.finish()

    def insert_and_read() -> None:
        with losing_store.write() as connection:
            runs.insert_runs(connection, [new_run(1)])
            assert connection.execute(text("SELECT count(*) FROM runs")).scalar_one() == 1

    with pytest.raises(UnavailableError):
        insert_and_read()
    assert ids(losing_store) == []
    insert_and_read()
    assert ids(losing_store) == [run_name(1)]


def test_a_commit_that_was_not_heard_is_not_carried_out(losing_store: Store) -> None:
    LosingConnection.lose = lambda connection, query: connection.pgconn.finish()
    with pytest.raises(UnavailableError):
        insert(losing_store, new_run(1))
    assert ids(losing_store) == []
    insert(losing_store, new_run(2))
    assert ids(losing_store) == [run_name(2)]


def test_a_commit_of_which_nothing_can_be_found_out_says_so(
    losing_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "COMMIT_SECONDS", 0.3)

    def cut(connection: psycopg.Connection[Any], query: str) -> None:
        connection.pgconn.finish()
        SERVER().stop("immediate")

    LosingConnection.lose = cut
    with pytest.raises(CommitUnknownError, match="could not be found out"):
        insert(losing_store, new_run(1))
    SERVER().start()
    insert(losing_store, new_run(2))
    assert ids(losing_store) == [run_name(2)]


def test_nobody_elses_commit_is_taken_for_one_that_a_crash_has_undone(losing_store: Store, name: str) -> None:
    """After a crash PostgreSQL gives numbers of transactions again of which nothing had reached the disk."""
    insert(losing_store, new_run(1))

    def crash(connection: psycopg.Connection[Any], query: str) -> None:
        connection.pgconn.finish()
        SERVER().stop("immediate")
        SERVER().start()
        other = Store(SERVER().url(name))
        for number in range(2, 9):
            insert(other, new_run(number))
        other.close()

    LosingConnection.lose = crash
    with pytest.raises(UnavailableError):
        insert(losing_store, new_run(99))
    assert ids(losing_store) == [run_name(number) for number in range(8, 0, -1)]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_the_database_is_got_over(store: Store, mode: str) -> None:
    insert(store, new_run(1))
    assert ids(store) == [run_name(1)]
    SERVER().stop(mode)
    for attempt in (lambda: insert(store, new_run(2)), lambda: ids(store)):
        with pytest.raises(UnavailableError, match=r"[Cc]onnection refused"):
            attempt()
    SERVER().start()
    insert(store, new_run(3))
    assert ids(store) == [run_name(3), run_name(1)]


# --- writes that wait ---------------------------------------------------------------------------------------


def test_what_sqlalchemy_executes_comes_after_the_writes_that_wait(store: Store) -> None:
    with store.write() as connection:
        runs.insert_runs(connection, [new_run(1)])
        assert connection.execute(text("SELECT count(*) FROM runs")).scalar_one() == 1
        runs.insert_runs(connection, [new_run(2)])
        assert len(runs.load_rows(connection, [run_name(1), run_name(2)])) == 2


def test_a_write_that_fails_while_it_waits_undoes_the_group_and_what_comes_after_it(store: Store) -> None:
    def insert_again() -> None:
        with store.write() as connection:
            for number in (2, 1, 3):
                runs.insert_runs(connection, [new_run(number)])

    insert(store, new_run(1))
    with pytest.raises(IntegrityError):
        insert_again()
    assert ids(store) == [run_name(1)]
    insert(store, new_run(4))
    assert ids(store) == [run_name(4), run_name(1)]


def test_what_waits_when_a_group_is_given_up_is_forgotten(store: Store) -> None:
    def give_up() -> None:
        with store.write() as connection:
            runs.insert_runs(connection, [new_run(1)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        give_up()
    insert(store, new_run(2))
    assert ids(store) == [run_name(2)]


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["", "NULL", '","', "\\", "{}"]
)
_NUMBERS = st.integers(-(2**63), 2**63 - 1)


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    store = Store(SERVER().url(SERVER().create_migrated_database()))
    with store.write() as connection:
        # It stays open while other tests take their time.
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        yield connection
    store.close()


@given(st.lists(_TEXTS | st.none(), max_size=6) | st.lists(_NUMBERS | st.none(), max_size=6))
def test_arrays_bring_every_text_and_number(connection: Connection, values: list[Any]) -> None:
    kind = "bigint" if any(isinstance(value, int) for value in values) else "text"
    found = execute(connection, f"SELECT unnest(%(values)s::{kind}[])", {"values": array(values)}).fetchall()
    assert [value for (value,) in found] == values


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_no_array_holds_a_number_of_more_than_64_bits(number: int) -> None:
    with pytest.raises(OverflowError):
        array([1, None, number])


class CountingConnection(psycopg.Connection[Any]):
    """Counts how often somebody waits for its database."""

    waits = 0

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        return _CountingCursor(self)

    @contextmanager
    def pipeline(self) -> Iterator[Any]:
        CountingConnection.waits += 1
        with super().pipeline() as pipeline:
            yield pipeline


class _CountingCursor(psycopg.Cursor[Any]):
    def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        # Within a pipeline statements are sent, and their answers are not waited for.
        CountingConnection.waits += self.connection.pgconn.pipeline_status == PipelineStatus.OFF
        return super().execute(query, *arguments, **options)


def test_a_trigger_waits_for_the_database_three_times_and_an_update_twice(name: str) -> None:
    """They begin, and send all that they write with their commit; in between a trigger looks for its answer."""
    world = World(Store(SERVER().url(name), connection_class=CountingConnection))
    worker = WorkerDouble(world)
    world.trigger()
    run = worker.claim_one()
    worker.report(run, Set("progress", 0))
    before = CountingConnection.waits
    command = Trigger(TriggerItem("work", None, TriggerOptions()), request_id="request_1")
    world.do(command)
    assert CountingConnection.waits - before == 3
    before = CountingConnection.waits
    # The check of tests that compares kept rows would ask once more.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transaction, "load_runs", held_rows.load_runs)
        worker.report(run, Set("progress", 1))
    assert CountingConnection.waits - before == 2
    world.store.close()


@pytest.mark.parametrize("asked_for", ["?client_encoding=LATIN1", ""])
def test_texts_come_back_whatever_encoding_is_asked_for(
    name: str, asked_for: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    store = Store(SERVER().url(name) + asked_for)
    written = "ü € \U0001f600"
    with store.write() as connection:
        runs.insert_runs(connection, [new_run(1, task=written)])
        assert runs.load_rows(connection, [run_name(1)])[run_name(1)].task == written
        # Wrong both ways it would come back, too.
        assert connection.execute(text("SELECT length(task) FROM runs")).scalar_one() == len(written)
    store.close()


# --- what is said when it cannot be used -------------------------------------------------------------------


def refusal(url: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Store(url).close()
    told = str(caught.value)
    for secret in ("s3cret", "p@ss", "p%40ss", "hidden"):
        assert secret not in told
    return told


def test_a_wrong_password(name: str) -> None:
    told = refusal(SERVER().url(name, password="hidden"))
    assert f"127.0.0.1:{SERVER().port}/{name}" in told
    assert "password authentication failed" in told
    assert "%40" in told


def test_no_such_database() -> None:
    assert '"nowhere" does not exist (create it' in refusal(SERVER().url("nowhere"))


def test_no_such_host_and_nobody_there() -> None:
    assert "check the host" in refusal("postgresql://me:hidden@nowhere.invalid/name")
    assert "is PostgreSQL running there" in refusal("postgresql://me:hidden@127.0.0.1:9/name")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hid@den@host/name",
        "postgresql://me:hidden/more@host/name",
        "postgresql://me:hidden#more@host/name",
        "postgresql://me:hidden@host:port/name",
        "postgresql://me:hidden@host/name?no_option=1",
        "postgresql://me:hidden%zz@host/name",
    ],
)
def test_a_url_that_cannot_be_read_is_not_shown(url: str) -> None:
    told = refusal(url)
    assert "hid" not in told
    assert "%40 for @" in told


@pytest.mark.parametrize("url", ["mysql://me:hidden@host/name", "sqlite:///file.db", "host=hidden", "hidden"])
def test_another_kind_of_database_is_none_of_ours(url: str) -> None:
    assert "postgresql://user:password@host:5432/name" in refusal(url)


def user(name: str, rights: str = "") -> str:
    """A user of the database who may do this; its URL."""
    with SERVER().administer(name) as connection:
        connection.execute(f"CREATE ROLE {name}_user LOGIN PASSWORD '{postgres.PASSWORD}'".encode())
        for right in filter(None, rights.split(";")):
            connection.execute(right.format(user=f"{name}_user", name=name).encode())
    return SERVER().url(name, user=f"{name}_user")


def test_no_right_to_make_tables() -> None:
    name = SERVER().create_database()
    told = refusal(user(name))
    assert "permission denied for schema public" in told
    assert "GRANT CREATE" in told


def test_no_right_on_the_tables(name: str) -> None:
    told = refusal(user(name))
    assert "permission denied for table alembic_version" in told
    assert "grant this one all rights" in told


def test_a_database_that_is_read_only(name: str) -> None:
    with SERVER().administer() as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    assert "name the primary" in refusal(SERVER().url(name))


def test_a_database_that_becomes_read_only_is_unavailable(store: Store, name: str) -> None:
    with SERVER().administer() as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    end_connections(name)
    with pytest.raises(UnavailableError, match="name the primary"):
        insert(store, new_run(1))
    assert ids(store) == []
    with SERVER().administer() as connection:
        connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())
    insert(store, new_run(1))
    assert ids(store) == [run_name(1)]


def test_fewer_connections_than_the_pool(name: str) -> None:
    url = user(
        name, "GRANT ALL ON ALL TABLES IN SCHEMA public TO {user};ALTER ROLE {user} CONNECTION LIMIT 2"
    )
    store = Store(url)
    with store.read():
        with pytest.raises(UnavailableError, match="raise max_connections"), store.read():
            pass
    insert(store, new_run(1))
    assert ids(store) == [run_name(1)]
    store.close()
    with SERVER().administer() as connection:
        connection.execute(f"ALTER ROLE {name}_user CONNECTION LIMIT 0".encode())
    assert "raise max_connections" in refusal(url)


def test_a_statement_timeout(store: Store, name: str) -> None:
    with SERVER().administer() as connection:
        connection.execute(f"ALTER DATABASE {name} SET statement_timeout = 100".encode())
    end_connections(name)
    with (
        pytest.raises(UnavailableError, match=r"cannot be read now.*statement_timeout"),
        store.read() as connection,
    ):
        connection.execute(text("SELECT pg_sleep(10)"))
    insert(store, new_run(1))
    assert ids(store) == [run_name(1)]


def test_a_database_of_a_newer_version_is_left_alone_and_named(name: str, store: Store) -> None:
    with store.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9876'"))
    told = refusal(SERVER().url(name))
    assert "newer version" in told
    assert "9876" in told
    with store.read() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9876"


def test_a_database_of_somebody_else_is_refused_and_kept() -> None:
    name = SERVER().create_database()
    with SERVER().administer(name) as connection:
        connection.execute("CREATE TABLE runs (distance real)")
    assert '"runs" already exists' in refusal(SERVER().url(name))
    with SERVER().administer(name) as connection:
        found = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
        )
        assert found.fetchall() == [("runs",)]


def test_servers_that_start_at_once_migrate_once() -> None:
    name = SERVER().create_database()
    stores: list[Store] = []
    threads = [Thread(target=lambda: stores.append(Store(SERVER().url(name)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 4
    for number, store in enumerate(stores):
        insert(store, new_run(number))
    assert len(ids(stores[0])) == 4
    for store in stores:
        store.close()


def test_a_commit_is_on_disk_even_where_the_database_is_set_to_lose_it(store: Store, name: str) -> None:
    with SERVER().administer() as connection:
        connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off".encode())
    end_connections(name)
    with store.write() as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar() == "on"
        assert connection.execute(text("SHOW application_name")).scalar() == "milepost"


def test_a_pooler_that_forgets_prepared_statements_is_noticed(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def forget() -> None:
        # The driver sees a plain DEALLOCATE, a pooler does not tell it.
        for transaction in (store.read, store.write):
            with transaction() as connection:
                connection.exec_driver_sql("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")

    for number in range(8):
        insert(store, new_run(number))
        assert len(ids(store)) == number + 1
    # It is met once on each connection: by whoever reads or writes next, who may try again.
    with pytest.raises(UnavailableError, match="prepared statement"):
        forget()
    assert "does not keep prepared statements" in caplog.text
    for number in range(8, 10):
        forget()
        insert(store, new_run(number))
        assert len(ids(store)) == number + 1


def test_without_the_driver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "milepost.store.postgres", None)
    assert "pip install 'milepost[postgres]'" in refusal("postgresql://host/name")
