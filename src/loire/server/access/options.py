"""How a server is protected: its settings, and the check that it is not left open by accident."""

import ipaddress
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loire.base.errors import ConfigError
from loire.server.access.key_sources import ADMIN_VARIABLE, KEY_VARIABLE, KeySources
from loire.server.access.keys import KeyRing
from loire.server.access.names import KnownNames, known_names
from loire.server.access.rates import NO_LIMITS, Clock, Limits
from loire.server.storage.file_watch import FileWatch

log = logging.getLogger("loire.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may use a server, and how much of it.

    limits: of all callers together where there are no keys. public_metrics: /metrics needs no key.
    names: what Host and Origin headers may say. key_watch: keeps the ring as its files say.
    """

    ring: KeyRing = field(default_factory=KeyRing)
    limits: Limits = NO_LIMITS
    public_metrics: bool = False
    names: KnownNames = field(default_factory=KnownNames)
    key_watch: FileWatch | None = None
    clock: Clock = time.monotonic
    """Of the limits, in seconds."""


OPEN_ACCESS = Access()
"""No keys and no limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessOptions:
    """Settings of an Access.

    Attributes:
        keys: where API keys come from, beside the environment.
        limits: of each key that has none of its own.
        allow_no_key: other machines may reach a server without keys.
        public_metrics: /metrics needs no key.
        allowed_hosts: names of the server beside this machine's own; * for all.
        allowed_origins: pages of other servers that may ask it, from browsers; * for all.
    """

    keys: KeySources = field(default_factory=KeySources)
    limits: Limits = NO_LIMITS
    allow_no_key: bool = False
    public_metrics: bool = False
    allowed_hosts: Sequence[str] = ()
    allowed_origins: Sequence[str] = ()

    def settle(self, host: str, environment: Mapping[str, str] = os.environ) -> Access:
        """The access to a server that will listen on a host; says in the log who may ask.

        Raises ConfigError if a key is wrong, or if other machines could reach the server and no
        key would keep them out.
        """
        ring = KeyRing(self.keys.read(environment, self.limits))
        self.keys.warn_of_readers()
        if ring:
            log.info("%d API keys: every route but /health needs one", len(ring.keys))
        elif is_loopback(host):
            log.info("no API keys: only this machine can reach %s", host)
        elif self.allow_no_key:
            log.warning("no API keys: whoever can reach %s may use this server", host)
        else:
            raise ConfigError(
                f"{host} can be reached from other machines, but no key is set: give keys with "
                f"--api-key-file or {KEY_VARIABLE}, listen on 127.0.0.1, or let everybody in with "
                f"--allow-no-key"
            )
        if ring and not any(key.admin for key in ring.keys):
            log.info(
                "no admin key (--admin-key-file or %s): admin routes are closed", ADMIN_VARIABLE
            )
        names = known_names(
            self.allowed_hosts, self.allowed_origins, has_keys=bool(ring), listens_on=host
        )
        return Access(
            ring=ring,
            limits=self.limits,
            public_metrics=self.public_metrics,
            names=names,
            key_watch=self.keys.watch(ring, environment, self.limits),
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach sockets that listen on a host.

    Raises ConfigError if there is no such host.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"there is no host {host!r}: {error.strerror}; choose --host") from error
    addresses = (str(address[0]).partition("%")[0] for *_, address in found)
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)
