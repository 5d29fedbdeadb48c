"""The first program in the sandbox of a build: opens the way to the proxy on the loopback interface and runs uv.

`bridge.py SOCKET COMMAND...`, started as a file of its own beside `spawn.py`: the standard library only.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import threading


def main() -> int:
    """Run the command with the proxy in its environment; its exit code."""
    # an isolated interpreter looks for no module beside the program
    place = os.path.join(os.path.dirname(__file__), "spawn.py")  # noqa: PTH118, PTH120 - a small program
    found = importlib.util.spec_from_file_location("spawn", place)
    if found is None or found.loader is None:
        raise ImportError(place)
    spawn = importlib.util.module_from_spec(found)
    found.loader.exec_module(spawn)
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    threading.Thread(target=spawn.serve, args=(server, sys.argv[1]), daemon=True).start()
    proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
    environment = {**os.environ, **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), proxy)}
    code = subprocess.run(sys.argv[2:], env=environment, stdin=subprocess.DEVNULL, check=False).returncode
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
