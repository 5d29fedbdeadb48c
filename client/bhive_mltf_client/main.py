"""The command `bhive-mltf-client`."""

from __future__ import annotations

import argparse
import codecs
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bhive_mltf_client import __version__
from bhive_mltf_client.errors import ClientError

if TYPE_CHECKING:
    from bhive_mltf_client.gateway import Gateway

# Whole escape sequences, what is left of control characters, those above 127 included, and what turns the direction of
# the text: a log does not steer the reader's terminal.
_CONTROL = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])?"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def without_control(parts: Iterable[bytes]) -> Iterator[bytes]:
    """A log without what would steer the reader's terminal, wherever it is cut; what is no UTF-8 is replaced."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for part in parts:
        yield _CONTROL.sub("", decoder.decode(part)).encode()
    yield decoder.decode(b"", final=True).encode()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except ClientError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bhive-mltf-client", description="Hand trainings in to an MLTF gateway.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=text, description=text)
        one.set_defaults(run=run)
        return one

    verb("login", _login, "sign in by a code that is typed into a browser").add_argument("url", metavar="URL")
    verb("logout", _logout, "forget the tokens, here and at the sign-on service")
    verb("whoami", _whoami, "who you are for the gateway, and your limits")
    verb("profiles", _profiles, "the kinds of jobs that you may ask for")
    submit = verb("submit", _submit, "hand a project folder in")
    submit.add_argument("folder", type=Path, nargs="?", default=Path())
    submit.add_argument("-e", "--entry-point", default="main")
    submit.add_argument("-P", "--param", action="append", default=[], metavar="NAME=VALUE")
    submit.add_argument("--profile", required=True)
    text = "a file of the project (python_env.yaml, requirements.txt), 'profile' for what is there, or 'profile:NAME'"
    submit.add_argument("--environment", default="", metavar="FILE", help=text)
    submit.add_argument("--hours", type=float)
    submit.add_argument("--nodes", type=int, default=1)
    submit.add_argument("--ranks-per-node", type=int, default=1, help="how often the command is started on each node")
    submit.add_argument("--resume", action="store_true", help="it goes on from its checkpoints when started again")
    submit.add_argument("--experiment", default="")
    submit.add_argument("--name", default="")
    submit.add_argument("--label", default="")
    submit.add_argument("--allow", action="append", default=[], metavar="FILE", help="pack it although it looks secret")
    submit.add_argument("-f", "--follow", action="store_true", help="show the log until the job is over")
    jobs = verb("jobs", _jobs, "your jobs, newest first")
    jobs.add_argument("--state", default="")
    jobs.add_argument("--label", default="")
    jobs.add_argument("--limit", type=int, default=50)
    for name, run, text in (
        ("show", _show, "all about a job"),
        ("cancel", _cancel, "end a job"),
        ("logs", _logs, "what a job printed"),
    ):
        verb(name, run, text).add_argument("job", metavar="JOB")
    logs = verbs.choices["logs"]
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job is over")
    logs.add_argument("--rank", type=int, default=0)
    logs.add_argument("--raw", action="store_true", help="with control characters")
    verb("token", _token, "a token for the tracking server, on standard output")
    return parser


def _gateway() -> Gateway:
    from bhive_mltf_client.gateway import Gateway

    return Gateway()


def _login(options: argparse.Namespace) -> None:
    from bhive_mltf_client import sign_in

    def tell(address: str, code: str) -> None:
        sys.stdout.write(f"open {address}\nand confirm the code {code}\n")
        sys.stdout.flush()

    tokens = sign_in.sign_in(options.url, tell)
    sys.stdout.write(
        f"signed in at {tokens.gateway}\n"
        f"for mlflow: export MLFLOW_TRACKING_URI={tokens.tracking_url} MLFLOW_TRACKING_AUTH=mltf\n"
    )


def _logout(_: argparse.Namespace) -> None:
    from bhive_mltf_client import sign_in

    sys.stdout.write("signed out\n" if sign_in.sign_out() else "you were not signed in\n")


def _whoami(_: argparse.Namespace) -> None:
    with _gateway() as gateway:
        sys.stdout.write(json.dumps(gateway.me(), indent=2) + "\n")


def _profiles(_: argparse.Namespace) -> None:
    with _gateway() as gateway:
        for one in gateway.profiles():
            size = f"{one['max_nodes']} x {one['gpus_per_node']} GPUs, {one['max_hours']:g} h"
            built = f"; builds environments for Python {', '.join(one['pythons'])}" if one.get("builds") else ""
            sys.stdout.write(f"{one['name']:20} {size:24} {one['description']}{built}\n")


def _submit(options: argparse.Namespace) -> int:
    request = {
        "entry_point": options.entry_point,
        "parameters": _parameters(options.param),
        "profile": options.profile,
        **{name: getattr(options, name) for name in ("nodes", "ranks_per_node", "resume")},
        **({"hours": options.hours} if options.hours is not None else {}),
        **({"environment": options.environment} if options.environment else {}),
        **{name: getattr(options, name) for name in ("experiment", "name", "label")},
    }
    with _gateway() as gateway:
        job = gateway.submit(options.folder, request, tuple(options.allow))
        sys.stdout.write(f"job {job['id']}, run {job['run_id']}\nbhive-mltf-client logs -f {job['id']}\n")
        sys.stdout.flush()
        return _follow(gateway, job["id"]) if options.follow else 0


def _jobs(options: argparse.Namespace) -> None:
    with _gateway() as gateway:
        for job in gateway.jobs(options.state, options.label, options.limit):
            made = time.strftime("%Y-%m-%d %H:%M", time.localtime(job["created_at"]))
            sys.stdout.write(f"{job['id']}  {job['state']:11} {made}  {job['profile']:16} {job['name']}\n")


def _show(options: argparse.Namespace) -> None:
    with _gateway() as gateway:
        sys.stdout.write(json.dumps(gateway.show(options.job), indent=2) + "\n")


def _cancel(options: argparse.Namespace) -> None:
    with _gateway() as gateway:
        job = gateway.cancel(options.job)
        is_over = job["ended_at"] is not None
        sys.stdout.write(f"{job['id']} is over: {job['state']}\n" if is_over else f"{job['id']} is being cancelled\n")


def _logs(options: argparse.Namespace) -> int:
    with _gateway() as gateway:
        if options.follow:
            return _follow(gateway, options.job, options.rank, raw=options.raw)
        _write(gateway.log(options.job, options.rank), raw=options.raw)
    return 0


def _token(_: argparse.Namespace) -> None:
    with _gateway() as gateway:
        sys.stdout.write(f"{gateway.tracking_token()[0]}\n")


def _follow(gateway: Gateway, job: str, rank: int = 0, *, raw: bool = False) -> int:
    """Show the log until the job is over; 0 when it did its work."""
    _write(gateway.log(job, rank, follow=True), raw=raw)
    found = gateway.show(job)
    reason = f": {found['reason']}" if found["reason"] else ""
    sys.stderr.write(f"{job} {found['state']}{reason}\n")
    return 0 if found["state"] == "succeeded" else 1


def _write(parts: Iterable[bytes], *, raw: bool) -> None:
    for part in parts if raw else without_control(parts):
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()


def _parameters(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise ClientError(f"{one!r} is no parameter: give -P NAME=VALUE")
        if name in found:
            raise ClientError(f"parameter {name!r} is given twice")
        found[name] = value
    return found


if __name__ == "__main__":
    sys.exit(main())
