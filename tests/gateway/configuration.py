"""Settings of the gateways that tests start: what all have in common, and what a test has otherwise."""

import sys

import yaml

from bhive_mltf.gateway.identity import mint
from tests.gateway.keys import ISSUER


def content(folder, profiles, provider=None, **changes):
    """The content of `gateway.yml` of a gateway in this folder, whose signing key is made; users may use all profiles.

    provider : what the sign-on provider has otherwise.
    """
    if not list((folder / "keys").glob("*.pem")):
        mint.rotate(folder / "keys")
    return {
        "public_url": "https://gateway.example",
        "tracking_url": "https://mlflow.example",
        "spool": str(folder / "spool"),
        "database_url": f"sqlite:///{folder}/gateway.db",
        "keys": str(folder / "keys"),
        "provider": {"issuer": ISSUER, "audiences": ["mltf"], "cli_client": "cli", **(provider or {})},
        "roles": {"user": {"profiles": [*profiles]}},
        "profiles": profiles,
        **changes,
    }


def builds(wheels):
    """Settings of builds of environments, from a folder of wheels, which is made."""
    wheels.mkdir(exist_ok=True)
    return {"index_url": f"file://{wheels}", "pythons": {"3.11": sys.executable}}


def write(folder, found):
    """Write such content; its path."""
    path = folder / "gateway.yml"
    path.write_text(yaml.safe_dump(found))
    return path


def scripted(folder, poll_s=0.2, **profile):
    """A profile of jobs for a scheduler of scripts, with its facility and an environment without programs."""
    facility = folder / "site.yml"
    facility.write_text(f"hours: 1\nsignal_seconds: 30\npoll_seconds: {poll_s}\naccounting: false\n")
    (folder / "env" / "bin").mkdir(parents=True)
    return {"facility": str(facility), "environment": str(folder / "env"), **profile}
