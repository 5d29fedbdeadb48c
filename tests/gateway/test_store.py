"""The database on both engines: revisions, and writers that meet."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, Table, func, inspect, select, text

from bhive_mltf.errors import ConfigError
from bhive_mltf.gateway.identity.provider import Caller
from bhive_mltf.gateway.store import queries, schema
from bhive_mltf.gateway.store.database import Database
from bhive_mltf.gateway.store.tables import Base, Event, Owner, Project, ProjectRef, State, Submission
from bhive_mltf.gateway.worker.leader import lead

REVISIONS = ["0001", "0002", "0003", "0004"]
ALICE = Caller("https://provider.example", "alice", "cli", "Alice", frozenset(), 0.0)


@pytest.fixture
def empty(database_url):
    made = Database(database_url)
    yield made
    made.close()


@pytest.fixture
def database(empty):
    empty.create()
    return empty


def project(digest="0" * 64):
    return Project(digest=digest, bytes=2**40, files=1, name="", entry_points={})


def submit(database, **values):
    with database.writing() as session:
        owner = queries.owner_of(session, ALICE).id
        queries.remember_project(session, owner, project())
        made = {"idem_key": str(time.time_ns()), "request_hash": "", "digest": "0" * 64, "entry_point": "main"}
        job = Submission(owner=owner, **made, params={"a": "b"}, argv=["x"], profile="p", hours=1.0, **values)
        session.add(job)
        session.flush()
        queries.move(session, job, State.ACCEPTED, "owner")
        return job.id


def value_of(row, name):
    """The value of a row's column, or the default that the row would get."""
    default, value = Base.metadata.tables[row.__tablename__].columns[name].default, getattr(row, name)
    if value is not None or default is None:
        return value
    return default.arg(None) if default.is_callable else default.arg


def submit_before(database):
    """A submission as a program of an older revision wrote it, with the columns that there were."""
    made = {
        "owner": Owner(id="o1", iss=ALICE.issuer, sub=ALICE.subject, display="Alice", mlflow_name="u-1"),
        "project": project(),
        "submission": Submission(
            id="j1", owner="o1", idem_key="key-1", request_hash="", state="accepted", digest="0" * 64,
            entry_point="main", params={"a": "b"}, argv=["x"], profile="p", hours=1.0,
        ),
    }  # fmt: skip
    with database.engine.begin() as connection:
        for name, row in made.items():
            # as it is there: without the defaults of columns that came later
            there = Table(name, MetaData(), autoload_with=connection)
            connection.execute(there.insert().values({one.name: value_of(row, one.name) for one in there.columns}))
    return "j1"


def to_revision(database, revision):
    with database.engine.begin() as connection:
        schema.upgrade(connection, revision)


def revision_of(database):
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def test_revisions_are_all_tested():
    assert schema.newest() == REVISIONS[-1]


def test_migrations_make_the_tables_of_the_code(database):
    assert revision_of(database) == schema.newest()
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    database.create()


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("is_filled", [False, True])
def test_upgrade_from_each_revision_keeps_the_rows(empty, revision, is_filled):
    to_revision(empty, revision)
    job = submit_before(empty) if is_filled else None
    empty.upgrade()
    empty.create()
    assert revision_of(empty) == schema.newest()
    with empty.reading() as session:
        found = session.scalars(select(Submission)).all()
        assert [one.id for one in found] == ([job] if is_filled else [])
        assert all(one.params == {"a": "b"} for one in found)
        assert all((one.ranks_per_node, one.resume) == (1, False) for one in found)
        assert all((one.environment, one.env_key) == ("", "") for one in found)


def test_database_made_before_revisions_is_taken_over(empty):
    to_revision(empty, "0001")
    job = submit_before(empty)
    with empty.engine.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    with pytest.raises(ConfigError, match="has the schema 0001, and this program needs .* run 'db upgrade'"):
        empty.create()
    empty.upgrade()
    with empty.reading() as session:
        assert session.get(Submission, job).state == "accepted"
    assert inspect(empty.engine).has_table("web_session")


def test_database_of_a_newer_program_is_left_alone(database):
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for change in (database.create, database.upgrade):
        with pytest.raises(ConfigError, match="the schema 9999, newer than this program"):
            change()


def test_failed_upgrade_leaves_the_revision_before(empty, monkeypatch):
    to_revision(empty, "0001")
    submit_before(empty)
    with empty.writing() as session:
        session.execute(text("CREATE TABLE web_session (other INTEGER)"))
    with pytest.raises(Exception, match="web_session"):
        empty.upgrade()
    assert revision_of(empty) == "0001"


def test_processes_that_start_at_once_make_one_schema(database_url):
    made = [Database(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: one.upgrade(), made))
    assert revision_of(made[0]) == schema.newest()
    for one in made:
        one.close()


def test_absent_database_is_one_sentence():
    with pytest.raises(ConfigError) as caught:
        Database("postgresql+psycopg://mltf:secret@127.0.0.1:1/mltf").create()
    assert "cannot be used" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def at_once(number, work):
    start = threading.Barrier(number)

    def one(index):
        start.wait()
        return work(index)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number)))


def test_person_seen_by_many_requests_at_once_has_one_row(database):
    def see(_):
        with database.writing() as session:
            return queries.owner_of(session, ALICE).id

    assert len(set(at_once(8, see))) == 1
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Owner)) == 1


def test_project_uploaded_by_many_at_once_has_one_row(database):
    with database.writing() as session:
        callers = [Caller("i", f"p{n % 4}", "cli", "", frozenset(), 0.0) for n in range(8)]
        owners = [queries.owner_of(session, caller).id for caller in callers]

    def keep(index):
        with database.writing() as session:
            return queries.remember_project(session, owners[index], project()).bytes

    assert at_once(8, keep) == [2**40] * 8
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Project)) == 1
        assert session.scalar(select(func.count()).select_from(ProjectRef)) == 4


def test_counted_quota_is_never_passed(database):
    submit(database)
    with database.reading() as session:
        owner = session.scalars(select(Owner)).one().id

    def insert(index):
        with database.writing() as session:
            queries.lock_owner(session, owner)
            if len(queries.alive(session, owner)) >= 3:
                return False
            made = {"idem_key": str(index), "request_hash": "", "digest": "0" * 64, "entry_point": "main"}
            session.add(Submission(owner=owner, **made, params={}, argv=[], profile="p", hours=1.0))
            return True

    assert at_once(8, insert).count(True) == 2


def test_wish_to_cancel_and_a_step_at_once_both_stay(database):
    job = submit(database)

    def change(index):
        with database.writing() as session:
            row = session.get(Submission, job, with_for_update=True)
            if index:
                row.cancel_at = 1.0
            else:
                queries.move(session, row, State.PREPARING, "worker")

    at_once(2, change)
    with database.reading() as session:
        found = session.get(Submission, job)
        assert (found.state, found.cancel_at) == ("preparing", 1.0)
        assert session.scalar(select(func.count()).select_from(Event)) == 2


def test_reason_with_a_nul_is_kept_without_it(database):
    job = submit(database)
    with database.writing() as session:
        row = session.get(Submission, job)
        queries.move(session, row, State.FAILED, "worker", "a\0b", reason="c\0d")
    with database.reading() as session:
        assert session.get(Submission, job).reason == "cd"


@pytest.mark.gateway
def test_worker_of_another_host_waits_on_postgresql(postgres, tmp_path):
    database = Database(postgres.new())
    database.create()
    leading, done = threading.Event(), threading.Event()

    def second():
        with lead(database, tmp_path / "second.lock") as office:
            leading.set()
            with office.writing():
                done.wait(30)

    with lead(database, tmp_path / "first.lock") as first:
        thread = threading.Thread(target=second)
        thread.start()
        assert not leading.wait(1.5)
        with first.writing():
            pass
    assert leading.wait(30)
    done.set()
    thread.join()
    with pytest.raises(queries.NotLeadingError), first.writing():
        pass
    database.close()
