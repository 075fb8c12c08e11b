"""What a server serves, to whom, and how much it takes on."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from loire.base.config import EngineOptions
from loire.base.errors import ConfigError
from loire.server.access import AccessOptions
from loire.server.logs import LogOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """How much may wait, and how long things may take.

    Attributes:
        max_queued_requests: requests that may wait; more are refused.
        max_queued_tokens: prompt tokens that may wait; once they do, requests are refused.
        request_timeout_s: most seconds from a request's arrival to its end, waiting included.
        grace_period_s: how long running requests may go on when the server is told to stop.
        step_timeout_s: see loire.engine.supervisor.SupervisorOptions.

    Raises ConfigError for a limit that cannot work.
    """

    max_queued_requests: int = 2048
    max_queued_tokens: int = 2**22
    request_timeout_s: float | None = None
    grace_period_s: float = 30.0
    step_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for name in (item.name for item in fields(self)):
            value = getattr(self, name)
            if name == "grace_period_s":
                if value < 0:
                    raise ConfigError(f"grace_period must not be negative, but is {value}")
            elif value is not None and value <= 0:
                raise ConfigError(f"{name.removesuffix('_s')} must be above 0, but is {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Everything about a server but its address.

    Attributes:
        model: a name of the store, a directory, a GGUF file or a hub id.
        names: under which requests may ask for it; the first is the one it is shown under.
        options: of the engine.
        access: who may use it.
        log: what it writes to stderr.
        data_dir: for files and batches; by default data in LOIRE_HOME.
    """

    model: str
    names: Sequence[str]
    options: EngineOptions = field(default_factory=EngineOptions)
    access: AccessOptions = field(default_factory=AccessOptions)
    limits: ServerLimits = field(default_factory=ServerLimits)
    log: LogOptions = field(default_factory=LogOptions)
    data_dir: Path | None = None
