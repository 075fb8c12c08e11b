"""Slows down who tries keys: an address that sent many wrong ones is not listened to for a while.

Keys that came from an address before go on working there: behind a gateway many tenants share one,
and none can lock out the others.
"""

import ipaddress
import time
from collections import OrderedDict

from loire.server.access.rates import Bucket, Clock

WRONG_PER_MINUTE = 10
"""Wrong keys that an address may send, so many at once and one every 6 s."""
MAX_ADDRESSES = 4096
"""That are remembered: the latest."""


class KeyThrottle:
    """What each address has presented lately."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._addresses: OrderedDict[str, _Address] = OrderedDict()

    def wait_s(self, address: str, name: str | None) -> float:
        """Take note of a key that was presented; the seconds for which it does not count, or 0.

        name: of the key; None if it is wrong.
        """
        network = _network(address)
        found = self._addresses.get(network)
        if found is None:
            found = self._addresses[network] = _Address(self._clock)
            if len(self._addresses) > MAX_ADDRESSES:
                self._addresses.popitem(last=False)
        self._addresses.move_to_end(network)
        if name in found.known:
            return 0.0
        if found.tries.level < 1:
            return found.tries.wait_s(1)
        if name is None:
            found.tries.take(1)
        else:
            found.known.add(name)
        return 0.0


class _Address:
    """tries: wrong keys that it may send now. known: names of the keys that came from it."""

    __slots__ = ("known", "tries")

    def __init__(self, clock: Clock) -> None:
        self.tries = Bucket(WRONG_PER_MINUTE, clock)
        self.known: set[str | None] = set()


def _network(address: str) -> str:
    """The address, of IPv6 the 64 bits that one customer has."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address  # none at all: a socket of the file system
    if parsed.version == 4:
        return str(parsed)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return str(mapped or ipaddress.ip_network((parsed, 64), strict=False))
