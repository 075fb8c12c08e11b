"""What a server serves, to whom, and how much it takes on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loire.base.config import EngineOptions
from loire.base.lora import LoRAModule
from loire.server.access.limits import ServerLimits
from loire.server.access.options import AccessOptions
from loire.server.host.logs import LogOptions
from loire.server.host.tls import TlsFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Everything about a server but its address.

    Attributes:
        model: a name of the store, a directory, a GGUF file or a hub id.
        names: under which requests may ask for it; the first is the one it is shown under.
        options: of the engine.
        access: who may use it.
        log: what it writes to stderr.
        replicas: engines that Ray keeps, at the start and at most; None is one engine here.
        replica_timeout_s: how long one of them may give no sign of life; None: the usual time.
        tls: what it shows of itself; None speaks plain HTTP.
        metrics_port: of /metrics for everybody, beside the main one, which has it, too.
        lora_modules: adapters that are served beside the model.
        lora_root: below which others may be loaded while the server runs; None: nowhere.
        data_dir: for files and batches; by default data in LOIRE_HOME.
    """

    model: str
    names: Sequence[str]
    options: EngineOptions = field(default_factory=EngineOptions)
    access: AccessOptions = field(default_factory=AccessOptions)
    limits: ServerLimits = field(default_factory=ServerLimits)
    log: LogOptions = field(default_factory=LogOptions)
    replicas: tuple[int, int | None] | None = None
    replica_timeout_s: float | None = None
    tls: TlsFiles | None = None
    metrics_port: int | None = None
    data_dir: Path | None = None
    lora_modules: Sequence[LoRAModule] = ()
    lora_root: Path | None = None
