"""Names by which a server may be asked, and pages that may ask it."""

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from loire.base.errors import ConfigError

ALL = "*"
MAX_CHARACTERS = 300
"""Of a host with its port: names have 253 at most."""
NUM_REMEMBERED = 256
"""Hosts whose form is known: under a flood almost every call names one of few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownNames:
    """What Host and Origin headers may say.

    Without keys a name of somebody else's that leads here (DNS rebinding) would let any web page
    read what only this machine may, and any page could make a browser post to this server.

    Attributes:
        hosts: names of the server beside this machine's own; None: every name will do.
        origins: pages of other servers that may ask it, as SCHEME://HOST[:PORT]; None: all.
        pages: origins whose pages may read the answers as well, as CORS has it; * for all.
    """

    hosts: frozenset[str] | None = frozenset()
    origins: frozenset[str] | None = frozenset()
    pages: tuple[str, ...] = ()

    def knows_host(self, authority: str, address: str | None) -> bool:
        """Whether a Host header names this server. address: where the connection arrived."""
        if self.hosts is None:
            return True
        host = host_of(authority)
        if host is None:
            return False
        own = address is not None and host == _plain(address)
        return own or _is_this_machine(host) or host in self.hosts

    def knows_origin(self, origin: str, authority: str) -> bool:
        """Whether a page may ask. authority: the Host header, which its own pages share."""
        if self.origins is None or origin in self.origins:
            return True
        scheme, separator, own = origin.partition("://")
        # The scheme may be the proxy's that ends TLS.
        return bool(separator) and scheme in ("http", "https") and own == authority.lower()


def known_names(
    hosts: Sequence[str], origins: Sequence[str], *, has_keys: bool, listens_on: str = ""
) -> KnownNames:
    """From what was configured; a server with keys restricts nothing unless it is told to.

    Raises ConfigError if something is no name, or no origin.
    """
    for origin in origins:
        parts = urlsplit(origin)
        if origin != ALL and (origin != f"{parts.scheme}://{parts.netloc}" or not parts.netloc):
            raise ConfigError(
                f"--allowed-origin takes SCHEME://HOST[:PORT], such as https://chat.example, or "
                f"*, but was given {origin!r}"
            )
    names = {listens_on: host_of(listens_on)} if listens_on else {}
    for name in hosts:
        names[name] = host_of(name)
        if name != ALL and (names[name] is None or names[name] != _plain(name)):
            raise ConfigError(
                f"--allowed-host takes a name or an address without port, or *, but was given "
                f"{name!r}"
            )
    free_hosts = ALL in hosts or (has_keys and not hosts)
    free_origins = ALL in origins or (has_keys and not origins)
    return KnownNames(
        hosts=None if free_hosts else frozenset(name for name in names.values() if name),
        origins=None if free_origins else frozenset(origin.lower() for origin in origins),
        pages=(ALL,) if ALL in origins else tuple(origins),
    )


@lru_cache(NUM_REMEMBERED)
def host_of(authority: str) -> str | None:
    """The host of HOST[:PORT] in a plain form; None if it is none."""
    if len(authority) > MAX_CHARACTERS:
        return None
    try:
        if authority.count(":") > 1 and not authority.startswith("["):
            return _plain(str(ipaddress.ip_address(authority)))
        parts = urlsplit(f"//{authority}")
        _ = parts.port  # which raises for what is no number
        host = parts.hostname
    except ValueError:
        return None
    if not host or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return None
    return _plain(host) or None


@lru_cache(NUM_REMEMBERED)
def _plain(host: str) -> str:
    """In lower case, addresses in their shortest form, IPv4 as such."""
    host = host.lower().removesuffix(".").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _is_this_machine(host: str) -> bool:
    """localhost, a loopback address, or the machine's name."""
    if _is_loopback(host):
        return True
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    return host in ("localhost", name, short, f"{short}.local") or host.endswith(".localhost")


@lru_cache(NUM_REMEMBERED)
def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
