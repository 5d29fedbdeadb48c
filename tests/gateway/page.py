"""A gateway with a few jobs, for tests of its page."""

import warnings
from urllib.parse import parse_qs, urlsplit

from bhive_mltf.gateway import app as application
from bhive_mltf.gateway.identity.provider import Caller
from bhive_mltf.gateway.settings import Settings
from bhive_mltf.gateway.store import queries
from bhive_mltf.gateway.store.tables import Project, State, Submission
from bhive_mltf.gateway.web import sign_in
from tests.gateway import configuration
from tests.gateway.keys import ISSUER, FakeProvider

with warnings.catch_warnings():
    # it asks for the successor of httpx, with which it works the same
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
DIGEST = "0" * 64


class Page:
    """The application, its provider, and rows in its database."""

    def __init__(self, folder, url="https://gateway.example"):
        self.provider = FakeProvider()
        content = configuration.content(
            folder,
            {"gpu": {"facility": "x", "environment": "/env", "gpus_per_node": 2, "description": HOSTILE}},
            {"web_client": "web", "allow_http": True},
            public_url=url,
            roles={"user": {"profiles": ["gpu"], "jobs": 3}, "admin": {"profiles": ["gpu"], "admin": True}},
        )
        self.settings = Settings(**content)
        self.app = application.make(self.settings, self.provider.verifier(web_client="web"))
        self.database = self.app.state.services.database
        self.provider.person, self.provider.changes = "alice", {}

    def browser(self):
        return TestClient(self.app, base_url="https://gateway.example", follow_redirects=False)

    def close(self):
        self.database.close()

    def answer(self, url, asked):
        """The token endpoint: codes are good for the client that asks with what it began with."""
        self.provider.asked_with = asked
        changes = {"client_id": "web", **self.provider.changes}
        nonce = changes.pop("nonce", self.nonce)
        claims = {"sub": self.provider.person, "roles": changes.pop("roles", ["user"])}
        own = {"nonce": nonce, "aud": "web", "sub": changes.pop("id_sub", claims["sub"])}
        return {
            "access_token": self.provider.token(**claims, **changes),
            "id_token": self.provider.token(headers={"typ": "JWT"}, **own, without=("client_id", "roles")),
        }

    def sign_in(self, browser, monkeypatch, person="alice", begin="/auth/login", **changes):
        """The way of a browser through the provider; the last answer."""
        monkeypatch.setattr(sign_in, "post_form", self.answer)
        self.provider.person, self.provider.changes = person, changes
        place = browser.get(begin, follow_redirects=False).headers["location"]
        self.begun = {name: values[0] for name, values in parse_qs(urlsplit(place).query).items()}
        self.nonce = self.begun["nonce"]
        return browser.get(f"/auth/callback?code=c&state={self.begun['state']}", follow_redirects=False)

    def owner(self, person):
        caller = Caller(ISSUER, person, "cli", person, frozenset({"user"}), 0.0)
        with self.database.writing() as session:
            return queries.owner_of(session, caller).id

    def job(self, person="alice", state="running", **values):
        """A job of a person, with its log."""
        owner = self.owner(person)
        with self.database.writing() as session:
            if session.get(Project, DIGEST) is None:
                session.add(Project(digest=DIGEST, bytes=0, files=1, name="", entry_points={}))
                session.flush()
            count = len(queries.page(session, "", limit=1000))
            made = {"idem_key": str(count), "request_hash": "", "digest": DIGEST, "entry_point": "main", "params": {}}
            made |= {"argv": ["python", "a.py"], "profile": "gpu", "hours": 1.0, "gpus": 2, "name": "a job"}
            made |= {"experiment_id": "1", "run_id": "r1", **values}
            job = Submission(owner=owner, **made)
            session.add(job)
            session.flush()
            queries.move(session, job, State(state), "owner", "handed in")
            return job.id

    def log(self, job, content):
        path = self.settings.job_folder(job) / "logs" / "rank_0.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
