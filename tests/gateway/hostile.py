"""What hostile projects try, each as a small program that prints `WON` if it worked; and how they run as one project.

The texts are formatted with facts of the place where they run, see `facts`.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

CANARY = "canary-7f3a"
KEY = b"mltf-test-key"
_LIBC = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
_KEYCTL = _LIBC + "number = {{'x86_64': 250}}.get(__import__('platform').machine(), 219)\n"
_CLIENT = "import subprocess\nsubprocess.run({}, check=True, timeout=10)\nprint(WON)"

ATTEMPTS = {
    "folder of another job": "print(open('{other}/work/secret').read())",
    "folders of all jobs": "import os\nassert os.listdir('{spool}/jobs')\nprint(WON)",
    "tokens of all jobs": "import glob\nprint(open(glob.glob('{spool}/jobs/*/private/token')[0]).read(), WON)",
    "launch plans of all jobs": "import glob\nassert glob.glob('{spool}/jobs/*/private/launch.json')\nprint(WON)",
    "archives of others": "import os\nassert os.listdir('{spool}/blobs')\nprint(WON)",
    "secrets of the gateway": "for path in {secrets}:\n    print(open(path, 'rb').read(), WON)",
    "forged outcome": "import glob\nopen(glob.glob('{spool}/jobs/*/slurm')[0] + '/outcome.json', 'w')\nprint(WON)",
    "forged outcome by its name": "open('{job}/slurm/outcome.json', 'w').write('{{}}')\nprint(WON)",
    "forged word of a rank": "open('/job/../logs/rank_0.error.json', 'w').write('{{}}')\nprint(WON)",
    "log of its own job": "open('{job}/logs/rank_0.log', 'a').write('x')\nprint(WON)",
    "environment of all processes": (
        "import glob\nfor p in glob.glob('/proc/*/environ'):\n    print(open(p, errors='replace').read())"
    ),
    "command lines of the host": (
        "import glob\nfor p in glob.glob('/proc/[0-9]*/cmdline'):\n    if '{name}' in open(p).read(): print(WON)"
    ),
    "memory of the first process": (
        "found = [line.split() for line in open('/proc/1/maps') if ' rw-p ' in line]\n"
        "with open('/proc/1/mem', 'rb') as memory:\n"
        "    for place, *_ in found:\n"
        "        first, last = (int(one, 16) for one in place.split('-'))\n"
        "        memory.seek(first)\n"
        "        if WON.encode() in memory.read(last - first): print(WON)"
    ),
    "files that the first process has open": (
        "import os\nfor name in os.listdir('/proc/1/fd'):\n"
        "    found = os.readlink(f'/proc/1/fd/{{name}}')\n"
        # its own log is where it writes to
        "    if found.startswith('{spool}') and '/logs/rank_' not in found: print(found, WON)"
    ),
    "home of root": "import os\nassert set(os.listdir('/root')) - {seen}\nprint(WON)",
    "password file of the host": "assert 'daemon' in open('/etc/passwd').read()\nprint(WON)",
    "munge": "import os\nos.listdir('/run/munge')\nprint(WON)",
    "munge socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('{munge}')\nprint(WON)",
    "message bus": "import socket\nsocket.socket(socket.AF_UNIX).connect('/run/dbus/system_bus_socket')\nprint(WON)",
    "another job by sbatch": _CLIENT.format("['sbatch', '--wrap', 'true']"),
    "another step by srun": _CLIENT.format("['srun', '--overlap', 'true']"),
    "more time by scontrol": _CLIENT.format("['scontrol', 'update', 'jobid=1', 'timelimit=99:00:00']"),
    "end of other jobs by scancel": _CLIENT.format("['scancel', '--user=root']"),
    "scheduler with its own configuration": (
        "import os, subprocess\nopen('conf', 'w').write('ClusterName=lab\\nSlurmctldHost=localhost(127.0.0.1)\\n"
        "SlurmctldPort={port}\\nAuthType=auth/munge\\nNodeName=n1\\nPartitionName=main Nodes=n1\\n')\n"
        "subprocess.run(['squeue'], env={{**os.environ, 'SLURM_CONF': '/job/conf'}}, check=True, timeout=15)\n"
        "print(WON)"
    ),
    "job of cron": "open('/var/spool/cron/crontabs/root', 'a')\nprint(WON)",
    "job of cron in /etc": "open('/etc/cron.d/evil', 'w')\nprint(WON)",
    "job of at": _CLIENT.format("['at', 'now']"),
    "unit of systemd": "open('/etc/systemd/system/evil.service', 'w')\nprint(WON)",
    "signal to a process of the host": "import os\nos.kill({pid}, 0)\nprint(WON)",
    "ptrace of a process of the host": _LIBC + "assert libc.ptrace(16, {pid}, None, None) == 0\nprint(WON)",
    "keys of the session": (
        _KEYCTL + "key = libc.syscall(number, 10, -3, b'user', {key!r}, 0)\n"
        "text = ctypes.create_string_buffer(99)\nlibc.syscall(number, 11, key, text, 99)\nprint(text.value.decode())"
    ),
    "keys of the user": (_KEYCTL + "assert libc.syscall(number, 10, -4, b'user', {key!r}, 0) > 0\nprint(WON)"),
    "namespace of its own": _LIBC + "assert libc.unshare(0x10000000) == 0\nprint(WON)",
    "unshare": _CLIENT.format("['unshare', '-U', 'true']"),
    "sandbox in the sandbox": _CLIENT.format("['bwrap', '--dev-bind', '/', '/', 'true']"),
    "namespaces of the first process": (
        _LIBC + "import os\nassert libc.setns(os.open('/proc/1/ns/mnt', 0), 0) == 0\nprint(WON)"
    ),
    "mount": _CLIENT.format("['mount', '-t', 'tmpfs', 'x', '/tmp']"),
    "mount by the kernel": _LIBC + "assert libc.mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0\nprint(WON)",
    "unmount": _LIBC + "assert libc.umount2(b'/run/mltf', 2) == 0\nprint(WON)",
    "remount to write": _LIBC + "assert libc.mount(b'', b'/usr', b'', 0x1020, None) == 0\nprint(WON)",
    "mount of the host by chroot": "import os\nos.chroot('/proc/1/root')\nprint(WON)",
    "root of process 1": "import os\nassert set(os.listdir('/proc/1/root/root')) - {seen}\nprint(WON)",
    "write to /usr": "open('/usr/bin/evil', 'w')\nprint(WON)",
    "write to the environment": "open('{prefix}/evil', 'w')\nprint(WON)",
    "write beside /job": "open('/evil/x', 'w')\nprint(WON)",
    "write through a link": "import os\nos.symlink('/usr/bin', 'link')\nopen('link/evil', 'w')\nprint(WON)",
    "another folder in place of /job": "import os\nos.rename('/job', '/old')\nprint(WON)",
    "change of the first program": "open('/run/mltf/spawn.py', 'a')\nprint(WON)",
    # opened, never written: it would work on the whole machine
    "core pattern of the kernel": "open('/proc/sys/kernel/core_pattern', 'w')\nprint(WON)",
    "keys of the kernel's console": "open('/proc/sysrq-trigger', 'w')\nprint(WON)",
    "disk device": "import os\nos.mknod('/tmp/sda', 0o60600, os.makedev(8, 0))\nprint(WON)",
    "disk device among its files": "import os\nos.mknod('/job/out/sda', 0o60600, os.makedev(8, 0))\nprint(WON)",
    "kernel memory": "open('/dev/mem', 'rb')\nprint(WON)",
    "server of the host": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 3)\nprint(WON)",
    "scan of the loopback interface": (
        "import os, socket\nown = int(os.environ['MLFLOW_TRACKING_URI'].split(':')[2].split('/')[0])\n"
        "for port in range(1, 65536):\n"
        "    with socket.socket() as one:\n"
        "        is_open = port != own and one.connect_ex(('127.0.0.1', port)) == 0\n"
        # a connection to the port that it has itself is one with itself
        "        if is_open and one.getsockname() != one.getpeername(): print(port, WON)"
    ),
    "relays of other jobs": (
        "import glob, socket\nfor path in glob.glob('/tmp/mltf-*/run/relay'):\n"
        "    socket.socket(socket.AF_UNIX).connect(path)\n    print(WON)"
    ),
    "abstract socket of the host": "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0{name}')\nprint(WON)",
    "the internet": "import socket\nsocket.create_connection(('192.0.2.1', 80), 3)\nprint(WON)",
    "metadata of the machine": "import socket\nsocket.create_connection(('169.254.169.254', 80), 3)\nprint(WON)",
    "raw socket": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_RAW, 1)\nprint(WON)",
    "capability": (
        "status = open('/proc/self/status').read()\n"
        "assert 'CapEff:\\t0000000000000000' not in status or 'NoNewPrivs:\\t1' not in status\nprint(WON)"
    ),
    "user of a set-uid program": "import os\nos.setuid(0)\nprint(WON)",
    "name of the host": "import socket\nsocket.sethostname('evil')\nprint(WON)",
    "priority above others": "import os\nos.nice(-1)\nprint(WON)",
    "real-time priority": "import os\nos.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))\nprint(WON)",
    "others first when memory ends": (
        "with open('/proc/self/oom_score_adj', 'w') as file: file.write('-1000')\nprint(WON)"
    ),
    "more processes than allowed": (
        "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (10**6, 10**6))\nprint(WON)"
    ),
    "terminal of the host": "open('/dev/tty', 'w').write('x')\nprint(WON)",
}

# runs each of them as a process of its own, which may do what it likes to itself only; two at once, since some wait
DRIVER = """
import json, subprocess, sys
from concurrent.futures import ThreadPoolExecutor

def attempt(numbered):
    number, (name, code) = numbered
    open(f"attempt{number}.py", "w").write(code)
    try:
        done = subprocess.run([sys.executable, f"attempt{number}.py"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=60, start_new_session=True)
        text = done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired:
        text = "too long"
    return json.dumps([name, text])

with ThreadPoolExecutor(2) as pool:
    for line in pool.map(attempt, enumerate(json.load(open("attempts.json")).items())):
        print(line, flush=True)
"""


def facts(*, spool, job, other, secrets, munge, port, pid, name):
    """What the attempts know of the place; `name` is in a command line of the host and an abstract socket there."""
    # an installation of Python below /root is bound by its own path
    places = {"seen": set(Path(sys.base_prefix).parts), "prefix": sys.prefix, "key": KEY}
    given = {"spool": spool, "job": job, "other": other, "secrets": [str(one) for one in secrets]}
    return {**places, **given, "munge": munge, "port": port, "pid": pid, "name": name}


def write(folder, known):
    """Write the project that tries it all: `python main.py`."""
    # in two parts, so that no traceback shows it
    head = f"print('begun', flush=True)\nWON = {CANARY[:4]!r} + {CANARY[4:]!r}\n"
    attempts = {name: head + code.format(**known) for name, code in ATTEMPTS.items()}
    (folder / "attempts.json").write_text(json.dumps(attempts))
    (folder / "main.py").write_text(DRIVER)


def answers(log):
    """Name -> what the attempt printed, from the log of the project."""
    return dict(json.loads(line) for line in log.splitlines() if line.startswith("["))


def check(log):
    """Every attempt was made, and none won."""
    found = answers(log)
    assert set(found) == set(ATTEMPTS), log[-2000:]
    assert [name for name, text in found.items() if not text.startswith("begun")] == []
    won = {name: text for name, text in found.items() if CANARY in text}
    assert won == {}, won


def add_key():
    """Put a key into the session keyring of this process, as a service with a Kerberos ticket has one."""
    number = 248 if os.uname().machine == "x86_64" else 217
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(number, b"user", KEY, CANARY.encode(), len(CANARY), -3)
