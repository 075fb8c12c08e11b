"""What an application of replicas is made from: the args in the file of `serve deploy`."""

from dataclasses import fields
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loire.base.config import EngineOptions
from loire.base.errors import ConfigError
from loire.engine.pulse import MOST_SILENCE_S

APP = "loire"
"""Name of the application; fronts look for it."""
IMPORT_PATH = "loire.fleet.ray.app:build"


class Args(BaseModel):
    """options: of the engine, as in EngineOptions; without num_threads, num_cpus of them."""

    model_config = ConfigDict(extra="forbid")

    model: str
    options: dict[str, Any] = Field(default_factory=dict)
    replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    """Autoscaling from `replicas` to as many."""
    queued_tokens: float = Field(8000.0, gt=0)
    """Prompt tokens that may wait per replica before there are more."""
    num_cpus: float = Field(1.0, ge=0)
    """That Ray sets aside per replica."""
    num_gpus: float = Field(0.0, ge=0)
    replica_timeout_s: float = Field(MOST_SILENCE_S, ge=2)
    """A replica, or its engine, that gives no sign of life for that long is left."""
    grace_period_s: float = Field(30.0, ge=0)
    """For replicas that leave, to have their streams moved: usually over at once."""

    def engine_options(self) -> EngineOptions:
        """Of each replica. Raises ConfigError for options that there are not."""
        known = {field.name for field in fields(EngineOptions)}
        if unknown := sorted(set(self.options) - known):
            raise ConfigError(f"there are no engine options {', '.join(unknown)}")
        threads = {"num_threads": max(int(self.num_cpus), 1)}
        return EngineOptions(**(threads | self.options))


def from_options(
    model: str, options: EngineOptions, replicas: tuple[int, int | None], **more: Any
) -> Args:
    """Args of options that were settled on a command line; those left alone are left out. Raises
    ConfigError for numbers that cannot be."""
    default = EngineOptions()
    given = {
        field.name: getattr(options, field.name)
        for field in fields(EngineOptions)
        if getattr(options, field.name) != getattr(default, field.name)
    }
    if options.num_threads is not None:
        more.setdefault("num_cpus", float(options.num_threads))
    more |= {"replicas": replicas[0], "max_replicas": replicas[1]}
    try:
        return Args(model=model, options=given, **more)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ConfigError("; ".join(faults)) from error
