"""An application of the gateway that answers on this machine, in a thread of the test's process."""

import contextlib
import socket
import threading

import uvicorn


@contextlib.contextmanager
def listening():
    """A socket that listens, and its URL, which some applications are made with."""
    # named TCP, or asyncio would leave Nagle's algorithm on: 40 ms for each request
    with socket.socket(proto=socket.IPPROTO_TCP) as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield one, f"http://127.0.0.1:{one.getsockname()[1]}"


@contextlib.contextmanager
def answering(app, at):
    """The application answers at the socket."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([at],))
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
