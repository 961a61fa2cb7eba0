"""Serve a studies folder in processes that are killed: `python killed_server.py PLACE`.

Each line of the input starts one server, by fork from this process, which has imported everything and has no threads;
its process id and port are printed.
"""

import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn

from medclipsam.server.api.asgi import create_app
from medclipsam.server.api.protocol import BoundedProtocol
from medclipsam.server.monai_label.app import MedClipSamApp


def serve(place: Path, listener: socket.socket) -> None:
    conf = {"targets": "lungs x-ray", "networks": str(place / "space" / "networks")}
    app = create_app(MedClipSamApp(str(place / "app"), str(place / "studies"), conf), local=True)
    uvicorn.Server(uvicorn.Config(app, http=BoundedProtocol, ws="none", log_config=None)).run(sockets=[listener])


def main() -> None:
    place = Path(sys.argv[1])
    # nobody waits for a server that was killed
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in sys.stdin:
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        process = os.fork()
        if process == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # the output is for what `main` prints
            os.dup2(2, 1)
            serve(place, listener)
            os._exit(0)
        sys.stdout.write(f"{process} {listener.getsockname()[1]}\n")
        sys.stdout.flush()
        # who waits for a server that was killed must not wait for the next one
        listener.close()


if __name__ == "__main__":
    main()
