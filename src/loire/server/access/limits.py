"""How much a server takes on."""

from dataclasses import dataclass, fields

from loire.base.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """How much may wait, and how long things may take.

    Attributes:
        max_queued_requests: requests that may wait, each sequence (n) counted; more are refused.
        max_queued_tokens: prompt tokens that may wait; once they do, requests are refused.
        request_timeout_s: most seconds from a request's arrival to its end, waiting included.
        grace_period_s: how long running requests may go on when the server is told to stop.
        keep_alive_s: a stream is silent for no longer; comments or pings fill the time.
        idle_connection_s: how long a connection may be idle between requests; longer than the
            pools of common proxies and clients keep theirs (60 s), so that none is closed in use.
        max_connections: most at a time; None is what the limit on descriptors leaves.
        step_timeout_s: see loire.engine.supervisor.SupervisorOptions.

    Raises ConfigError for a limit that cannot work.
    """

    max_queued_requests: int = 2048
    max_queued_tokens: int = 2**22
    request_timeout_s: float | None = None
    grace_period_s: float = 30.0
    keep_alive_s: float = 10.0
    idle_connection_s: int = 120
    max_connections: int | None = None
    step_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for name in (item.name for item in fields(self)):
            value = getattr(self, name)
            if name == "grace_period_s":
                if value < 0:
                    raise ConfigError(f"grace_period must not be negative, but is {value}")
            elif value is not None and value <= 0:
                raise ConfigError(f"{name.removesuffix('_s')} must be above 0, but is {value}")
