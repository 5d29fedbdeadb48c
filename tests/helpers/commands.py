"""law commands as a user types them, in a shell with a folder of its own for outputs."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from tests.helpers import law_forks

TIMEOUT = 600  # s, for one command
REPOSITORY = Path(__file__).parents[2]
# A folder with another version of law, see `make test-law`.
OTHER_LAW = os.environ.get("BHIVE_TEST_LAW")


class Sandbox:
    """A shell as a user has it after `source setup.sh`, with a folder of its own for outputs.

    forks : folder of the servers of `law_forks.py`; without them each command is a process from the start.
    """

    forks = None

    def __init__(self, folder, law_home):
        self.folder = folder
        self.data_path = folder / "output"
        self.data_path.mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "LAW_", "BHIVE_"))},
            "DATA_PATH": str(self.data_path),
            "LAW_HOME": str(law_home),
            "LAW_CONFIG_FILE": str(REPOSITORY / "law.cfg"),
            "B_HIVE_DIR": str(REPOSITORY),
            "PYTHONPATH": os.pathsep.join([*filter(None, [OTHER_LAW]), str(REPOSITORY)]),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1",
        }

    def command(self, *arguments):
        return [str(Path(sys.executable).with_name("law")), *map(str, arguments)]

    def law(self, *arguments, **environment):
        """Run a law command; its output (both streams) and exit code."""
        command, environment = self.command(*arguments), {**self.environment, **environment}
        if self.forks is None:
            return subprocess.run(
                command,
                env=environment,
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        with tempfile.TemporaryFile("w+") as output:
            code = law_forks.run(self.forks, command, environment, self.folder, output.fileno(), TIMEOUT)
            output.seek(0)
            return subprocess.CompletedProcess(command, code, output.read())

    def run(self, *arguments, **environment):
        """Run a task that must succeed; its output."""
        done = self.law("run", *arguments, **environment)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def start(self, *arguments):
        """Start a task in a process group of its own."""
        return subprocess.Popen(
            self.command("run", *arguments),
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def flat(*options):
    """Options as they are typed."""
    return [part for one in options for item in one.items() for part in item]


def write_config(folder, **changes):
    """offline_run3 with some keys changed, as a file of its own."""
    content = yaml.safe_load((REPOSITORY / "configs/offline_run3.yml").read_text())
    path = folder / "mine.yml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    shutil.copy(REPOSITORY / "configs/default.yml", folder)
    return path
