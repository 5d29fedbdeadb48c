"""Environments built from wheels of a small index: locked, installed, closed, each content once, and taken away."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bhive_mltf.errors import ConfigError
from bhive_mltf.gateway import settings as configuration
from bhive_mltf.gateway.environments.builder import Builder, BuiltElsewhereError
from bhive_mltf.gateway.environments.proxy import hosts_of
from bhive_mltf.gateway.environments.store import Store, key_of
from bhive_mltf.gateway.environments.wanted import Wanted, read_wanted
from bhive_mltf.gateway.errors import EnvironmentBuildError
from bhive_mltf.gateway.settings import Builds, Settings
from bhive_mltf.gateway.worker.preparing import Environments
from tests.gateway import needs, wheels
from tests.gateway.keys import ISSUER
from tests.helpers.waiting import wait_for

pytestmark = pytest.mark.gateway


class Workshop:
    """A folder of wheels that is also an index, and a store of environments."""

    def __init__(self, folder):
        needs.builds()
        self.folder, self.wheels = folder, folder / "wheels"
        self.wheels.mkdir()
        self.store, self.log = Store(folder / "environments"), folder / "log"
        self.alpha = wheels.make_wheel(self.wheels, "alpha", requires=["beta"], script=True)
        self.beta = wheels.make_wheel(self.wheels, "beta")
        self.made = contextlib.ExitStack()
        self.numbers = iter(range(1000))

    def index(self, folder=None):
        """The wheels over HTTP; unlike a folder, it is asked through the proxy."""
        made = wheels.Index(folder or self.wheels)
        self.made.callback(made.close)
        return made

    def builder(self, url="", **values):
        url = url or f"file://{self.wheels}"
        return Builder(
            Builds(**{"index_url": url, "pythons": {"3.11": sys.executable}, **values}), self.store, self.log
        )

    def build(self, *requirements, url="", text=None, **values):
        """Build from requirements, or from the text of a file; the folder."""
        asked = Wanted(requirements) if text is None else read_wanted("a.txt", {"a.txt": text}.get)
        key = self.builder(url, **values).build(asked, self.folder / f"lock{next(self.numbers)}")
        return self.store.path(key)

    def said(self):
        return self.log.read_text()


@pytest.fixture
def workshop(tmp_path):
    made = Workshop(tmp_path)
    with made.made:
        yield made


def printed(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_environment_is_whole_closed_and_runs_from_its_place(workshop):
    place = workshop.build("alpha", url=workshop.index().url)
    assert (
        printed(place / "bin" / "python", "-c", "import alpha, beta; print(alpha.VALUE, beta.VALUE)")
        == "alpha1.0 beta1.0"
    )
    # a script goes by its own place, which has changed
    assert printed(place / "bin" / "alpha") == "alpha1.0"
    packages = place / "lib" / "python3.11" / "site-packages"
    code = "import alpha; print(alpha.__cached__, alpha.main.__code__.co_filename)"
    cached, file = printed(place / "bin" / "python", "-c", code).split()
    assert Path(cached).is_file()
    assert file == str(packages / "alpha.py")
    for path in place.rglob("*"):
        assert path.is_symlink() or not path.stat().st_mode & 0o222, path
    # the same file as in uv's cache
    assert (packages / "alpha.py").stat().st_nlink > 1
    assert [path.name for path in workshop.store.building.iterdir() if path.is_dir()] == ["cache"]
    assert (place / "requirements.lock").read_text() == wheels.locked(workshop.alpha, workshop.beta)
    assert f"environment {place.name} is ready" in workshop.said()


def test_same_content_is_built_once(workshop):
    first = workshop.build("alpha")
    again = workshop.build("beta", "alpha>=0.5")
    assert again == first
    assert workshop.said().count("building environment") == 1
    wheels.make_wheel(workshop.wheels, "beta", "1.1")
    assert workshop.build("alpha") != first
    assert workshop.build("alpha", pythons={"3.11": os.path.realpath(sys.executable)}) != first


def test_lock_of_a_submission_stays_when_the_index_has_more(workshop):
    lock, builder = workshop.folder / "lock", workshop.builder()
    key = builder.build(Wanted(("alpha",)), lock)
    wheels.make_wheel(workshop.wheels, "beta", "1.1")
    assert builder.build(Wanted(("alpha",)), lock) == key


def test_two_at_once_build_once(workshop):
    key = key_of("", **workshop.builder()._facts("3.11", sys.executable))
    workshop.store.make()
    with workshop.store.lock(key) as mine:
        assert mine
        with pytest.raises(BuiltElsewhereError):
            workshop.builder().build(Wanted(), workshop.folder / "lock")
    assert not workshop.store.is_ready(key)
    assert workshop.build().name == key


def test_lock_with_hashes_is_installed_as_it_is(workshop):
    place = workshop.build(text=wheels.locked(workshop.beta))
    assert printed(place / "bin" / "python", "-c", "import beta; print(beta.VALUE)") == "beta1.0"
    # without what it depends on, which the lock does not name
    place = workshop.build(text=wheels.locked(workshop.alpha))
    assert list(place.glob("lib/python3.11/site-packages/beta*")) == []


def test_wheel_with_another_hash_is_refused(workshop):
    text = wheels.locked(workshop.beta)
    wheels.make_wheel(workshop.wheels, "beta", text="EVIL = 1")
    with pytest.raises(EnvironmentBuildError, match=r"uv: .*[Hh]ash") as caught:
        workshop.build(text=text)
    assert "\n" not in str(caught.value)
    assert workshop.store.entries() == []


def test_package_without_wheels_is_refused_and_not_run(workshop):
    wheels.make_source(workshop.wheels, "gamma", setup=f"open({str(workshop.folder / 'ran')!r}, 'w')")
    with pytest.raises(EnvironmentBuildError, match=r"uv: No solution found.*gamma") as caught:
        workshop.build("gamma")
    assert "wheels" in str(caught.value) or "only-binary" in str(caught.value)
    assert "No solution found" in workshop.said()
    assert not (workshop.folder / "ran").exists()


def test_no_code_of_a_package_runs_while_it_is_built(workshop):
    ran = workshop.store.building / "ran"
    code = f"import pathlib; pathlib.Path({str(ran)!r}).touch()"
    # an interpreter that starts in the environment reads it
    wheels.make_wheel(workshop.wheels, "epsilon", text=code, further={"epsilon.pth": f"{code}\n"})
    place = workshop.build("epsilon")
    assert not ran.exists()
    printed(place / "bin" / "python", "-c", "pass")
    assert ran.exists()


@pytest.mark.parametrize("path", ["../../../../escaped", "/run/work/escaped", "epsilon-1.0.data/data/../../../escaped"])
def test_wheel_writes_nothing_beside_its_environment(workshop, path):
    wheels.make_wheel(workshop.wheels, "epsilon", further={path: "x"})
    with contextlib.suppress(EnvironmentBuildError):
        workshop.build("epsilon")
    found = list(workshop.folder.rglob("escaped"))
    assert [one for one in found if not one.is_relative_to(workshop.store.ready)] == []
    assert len(workshop.store.entries()) == len(list(workshop.store.ready.iterdir()))


def test_unknown_package_fails_with_the_sentence_of_uv(workshop):
    with pytest.raises(EnvironmentBuildError, match=r"uv: No solution found.*\bnowhere\b.*not found"):
        workshop.build("nowhere", url=workshop.index().url)


def test_build_reaches_no_host_but_those_of_the_index(workshop):
    (workshop.folder / "elsewhere").mkdir()
    path = wheels.make_wheel(workshop.folder / "elsewhere", "delta")
    index, elsewhere = workshop.index(), workshop.index(path.parent)
    host = f"127.0.0.1:{elsewhere.server_port}"
    index.links["delta"] = [(f"http://{host}/files/{path.name}", path.name)]
    with pytest.raises(EnvironmentBuildError):
        workshop.build("delta", url=index.url)
    assert elsewhere.seen == []
    assert f"refused, since it is no host of the index: {host}" in workshop.said()
    workshop.build("delta", url=index.url, index_hosts=(host,))
    assert elsewhere.seen != []


def test_hosts_of_an_index():
    assert hosts_of("https://Pypi.org/simple", ["files.pythonhosted.org", "a:8443"]) == {
        ("pypi.org", 443),
        ("files.pythonhosted.org", 443),
        ("a", 8443),
    }
    assert hosts_of("file:///wheels", ["a"]) == frozenset()


def test_build_that_takes_too_long_or_is_cancelled_ends(workshop):
    index = workshop.index()
    index.pause_s = 30.0
    with pytest.raises(EnvironmentBuildError, match="not built within 0.01 minutes"):
        workshop.build("alpha", url=index.url, minutes=0.01)
    builder = workshop.builder(index.url)
    threading.Timer(0.3, builder.stop.set).start()
    begun = time.monotonic()
    with pytest.raises(EnvironmentBuildError, match="cancelled"):
        builder.build(Wanted(("alpha",)), workshop.folder / "lock")
    assert time.monotonic() - begun < 10
    assert not (workshop.folder / "lock").exists()


def test_environment_that_is_too_large_is_refused(workshop):
    with pytest.raises(EnvironmentBuildError, match=r"GB and more, and may have 0.0001 GB"):
        workshop.build("alpha", environment_gb=0.0001)
    assert workshop.store.entries() == []


def killed_at(workshop, reached, work):
    """Do the work in a process that is killed once `reached()`."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            work()
        os._exit(1)
    try:
        wait_for(reached, 30, "the build")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_killed_build_leaves_nothing_half_done(workshop, monkeypatch):
    faults = workshop.folder / "faults"
    faults.mkdir()
    (faults / "in_build").touch()
    monkeypatch.setenv("MLTF_FAULTS", str(faults))
    held = faults / "in_build.held"
    killed_at(workshop, held.exists, lambda: workshop.build("alpha"))
    held.unlink()
    assert workshop.store.entries() == []
    (left,) = (path for path in workshop.store.building.iterdir() if path.is_dir() and path.name != "cache")
    place = workshop.build("alpha")
    assert place.name == left.name
    assert printed(place / "bin" / "alpha") == "alpha1.0"
    # what was left of another one goes as well
    (workshop.store.building / "another").mkdir()
    workshop.store.sweep(10**12)
    assert [path.name for path in workshop.store.building.iterdir() if path.is_dir()] == ["cache"]


def test_nothing_of_a_killed_build_lives_on(workshop):
    index = workshop.index()
    index.pause_s = 30.0
    mark = str(workshop.store.building).encode()

    def alive():
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                found += [path] if mark in path.read_bytes() else []
        return found

    killed_at(workshop, lambda: index.seen and alive(), lambda: workshop.build("alpha", url=index.url))
    wait_for(lambda: not alive(), 5, "the end of uv")


# -- room ------------------------------------------------------------------------------------------------------------


def fill(store, key, size, age):
    """An environment that says that it has so many bytes, used so long ago."""
    place = store.path(key)
    place.mkdir(parents=True)
    (place / "mltf.json").write_text(json.dumps({"bytes": size}))
    place.chmod(0o555)
    os.utime(place / "mltf.json", (time.time() - age,) * 2)


def environments(tmp_path, **values):
    builds = {"index_url": "file:///wheels", "pythons": {"3.11": sys.executable}, **values}
    settings = Settings(
        public_url="https://gateway.example",
        tracking_url="https://mlflow.example",
        spool=tmp_path,
        database_url="sqlite://",
        keys=tmp_path / "keys",
        provider={"issuer": ISSUER, "audiences": ["mltf"], "cli_client": "cli"},
        roles={},
        profiles={"gpu": {"facility": "x", "environment": "/env", "builds": True}},
        builds=builds,
    )
    made = Environments(settings)
    made.store.make()
    return made


def test_longest_unused_goes_first_and_what_is_used_stays(tmp_path):
    made = environments(tmp_path, all_gb=3.5)
    for key, age in {"used": 500, "old": 300, "older": 400, "new": 600}.items():
        fill(made.store, key, 10**9, age)
    made.make_room("new", {"used"})
    assert {one.key for one in made.store.entries()} == {"used", "old", "new"}
    # it was used just now
    assert made.store.entries()[-1].key == "new"
    made.store.sweep(10**12)
    assert [path.name for path in made.store.building.iterdir() if path.is_dir()] == ["cache"]


def test_no_room_beside_environments_in_use_is_one_sentence(tmp_path):
    made = environments(tmp_path, all_gb=2.5)
    for key in ("a", "b", "new"):
        fill(made.store, key, 10**9, 10)
    with pytest.raises(EnvironmentBuildError, match=r"have 3 GB with this one, and may have 2.5 GB: wait for one"):
        made.make_room("new", {"a", "b"})
    assert {one.key for one in made.store.entries()} == {"a", "b"}


def test_cache_that_is_too_large_goes_unless_a_build_uses_it(tmp_path):
    store = environments(tmp_path).store
    (store.cache / "x").write_bytes(bytes(100_000))
    with store.lock("cache", shared=True):
        store.sweep(50_000)
        assert (store.cache / "x").exists()
    store.sweep(10**6)
    assert (store.cache / "x").exists()
    store.sweep(50_000)
    assert list(store.cache.iterdir()) == []
    assert stat.S_IMODE(store.cache.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"index_url": "ftp://x"}, "must begin with https:// or file:///"),
        ({"index_url": "https://me:word@x/simple"}, "must not hold a password"),
        ({"index_url": "file://host/x"}, "must be file:///"),
        ({"pythons": {"3": "/usr/bin/python3"}}, "must be a version such as '3.11'"),
        ({"pythons": {"3.11": "python3"}}, "with an absolute path"),
        ({"pythons": {}}, "at least 1"),
    ],
)
def test_wrong_settings_of_builds_are_one_sentence(values, message):
    with pytest.raises(ValueError, match=message):
        Builds(**{"index_url": "file:///x", "pythons": {"3.11": "/usr/bin/python3"}, **values})


def test_profile_that_builds_needs_the_section_of_builds(tmp_path):
    made = environments(tmp_path)._settings.model_dump(mode="json", exclude={"builds"})
    path = tmp_path / "gateway.yml"
    path.write_text(json.dumps(made))
    with pytest.raises(ConfigError, match="profile gpu has `builds: true`, which needs the section `builds`"):
        configuration.load(path)
