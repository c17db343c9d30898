"""How often somebody may try to sign in with a key.

A few tries at once, then one after a pause: for each address, and for all addresses together, because an attacker may have many. Only
wrong keys count. Nobody is locked out for good: a try is allowed again after a pause that is always told, and a sign-in link, which
cannot be guessed, is never limited.
"""

import ipaddress
from collections import OrderedDict
from collections.abc import Callable

TRIES_BY_ADDRESS = 10
SECONDS_BY_ADDRESS = 30.0
TRIES_OVERALL = 100
SECONDS_OVERALL = 1.0
ADDRESSES_MAX = 10_000


class _Tries:
    """Tries that are left: up to `most`, and one more every `seconds`."""

    __slots__ = ("at", "left", "most", "seconds")

    def __init__(self, most: int, seconds: float, now: float) -> None:
        self.most = most
        self.seconds = seconds
        self.left = float(most)
        self.at = now

    def wait_seconds(self, now: float) -> float:
        self.left = min(self.most, self.left + (now - self.at) / self.seconds)
        self.at = now
        return 0.0 if self.left >= 1 else (1 - self.left) * self.seconds

    def take(self) -> None:
        self.left = max(0.0, self.left - 1)


class SignInAttempts:
    """Counts wrong keys.

    Args:
        clock: seconds of a clock that nobody sets.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._overall = _Tries(TRIES_OVERALL, SECONDS_OVERALL, clock())
        # The last used at the end.
        self._by_address: OrderedDict[str, _Tries] = OrderedDict()

    def wait_seconds(self, address: str) -> float:
        """How long this address has to wait before its next try; 0 when it may try now."""
        now = self._clock()
        return max(self._overall.wait_seconds(now), self._of(address, now).wait_seconds(now))

    def failed(self, address: str) -> None:
        """This address has tried a wrong key."""
        now = self._clock()
        self._overall.take()
        self._of(address, now).take()

    def _of(self, address: str, now: float) -> _Tries:
        network = _network(address)
        tries = self._by_address.get(network)
        if tries is None:
            tries = self._by_address[network] = _Tries(TRIES_BY_ADDRESS, SECONDS_BY_ADDRESS, now)
            if len(self._by_address) > ADDRESSES_MAX:
                self._by_address.popitem(last=False)
        self._by_address.move_to_end(network)
        return tries


def _network(address: str) -> str:
    """What counts as one address: of IPv6, whoever has one has a whole network of 64 bits."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((parsed, 64), strict=False))
    return address
