"""The Ray cluster: one that is there already, or one of our own on this machine."""

import logging
import os
import signal
import threading

import psutil
import ray
from ray import serve
from ray.job_config import JobConfig

from loire.base.errors import ConfigError
from loire.fleet.ray.auth import ADDRESS_VARIABLE

log = logging.getLogger("loire.fleet")


class _NoFolder(JobConfig):  # type: ignore[misc]
    """Ray puts the folder in which a server was started first among the places of modules of all
    its replicas, unless a job brings a folder of its own: what lies in a downloaded one would run.
    Models are found all the same: processes that are started here work in that folder."""

    def _runtime_env_has_working_dir(self) -> bool:
        return True


def connect() -> bool:
    """Join the cluster that RAY_ADDRESS names, or start one here; whether it was started.

    auth.require_token() comes first. Raises ConfigError if the cluster cannot be reached.
    """
    address = os.environ.get(ADDRESS_VARIABLE)
    try:
        # Without an address a running cluster of this machine would be joined, whoever started it.
        ray.init(
            address=address or "local",
            namespace="serve",
            job_config=_NoFolder(),
            log_to_driver=False,
            logging_level=logging.WARNING,
            configure_logging=False,
            **({} if address else {"include_dashboard": False}),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"Ray cannot be reached at {address or 'this machine'}: {error}"
        ) from error
    if address is None:
        ports = ", ".join(open_ports()) or "loopback only"
        log.warning("Ray was started here and listens on %s: its token keeps others out", ports)
    serve.start(proxy_location="Disabled")
    return address is None


def take_signals_back() -> None:
    """Handle SIGTERM as before connect(), on the main thread. Ray's library takes it for a failure
    and aborts the process three seconds later, in the middle of what still runs."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def open_ports() -> list[str]:
    """Addresses beyond loopback on which Ray's processes, children of this one, listen."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            for connection in process.net_connections("tcp"):
                host, port = connection.laddr[:2]
                host = host.removeprefix("::ffff:")
                is_open = connection.status == psutil.CONN_LISTEN
                if is_open and not host.startswith("127.") and host != "::1":
                    found.add(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return sorted(found)
