"""An engine's process that becomes ready, and then dies each time."""

import os
import socket
import sys

from loire.engine.worker import EngineWorker

if __name__ == "__main__":
    EngineWorker(socket.socket(fileno=int(sys.argv[1])))._load()
    sys.stderr.write("no life for me\n")
    sys.stderr.flush()
    os._exit(7)
