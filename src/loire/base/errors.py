"""The exceptions that Loire raises on purpose.

    LoireError
    ├── ConfigError                    a setting that cannot work (also a ValueError)
    │   └── CapacityError              ... because the memory is too small
    ├── ModelError                     a model that cannot be loaded
    │   ├── UnsupportedModelError      ... because Loire has no code for it
    │   ├── CheckpointError            ... because a file is damaged, truncated or lies
    │   └── ModelNotFoundError         ... because nothing of that name is here or can be fetched
    ├── RequestError                   a request that cannot be accepted (also a ValueError)
    │   └── PromptTooLongError         ... because it does not fit
    ├── BusyError                      too much of a kind is under way: try again later
    └── EngineError                    the engine cannot go on (stopped, or its step failed)
        ├── RankLostError              ... because one of the processes that compute it is gone
        └── RequestTimeoutError        ... in the time that a request may take

Every message says what was wrong, with the numbers, and what to do about it.
"""

MAX_MESSAGE = 700
"""Most characters of what is said of a model."""


class LoireError(Exception):
    """Base of all exceptions that Loire raises on purpose."""


class ConfigError(LoireError, ValueError):
    """A setting that cannot work."""


class CapacityError(ConfigError):
    """The memory is too small for what was asked."""


class ModelError(LoireError):
    """A model that cannot be loaded.

    Files say what is wrong with them in words of their own, of any length: of a long message the
    beginning and the end are kept.
    """

    def __init__(self, message: str) -> None:
        if len(message) > MAX_MESSAGE:
            message = f"{message[: MAX_MESSAGE - 150]} ... {message[-145:]}"
        super().__init__(message)


class UnsupportedModelError(ModelError):
    """An architecture, or a feature of one, that Loire has no code for."""


class CheckpointError(ModelError):
    """A model file that is damaged, truncated, incomplete or inconsistent."""


class ModelNotFoundError(ModelError):
    """No model of that name is on this machine or can be fetched."""


class RequestError(LoireError, ValueError):
    """A request that cannot be accepted.

    ``param`` names the offending field, where there is one.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def call_field(self, name: str) -> None:
        """Speak of the field by the name that the caller knows it by, in the message too."""
        head, colon, rest = str(self).partition(": ")
        if self.param is not None and colon and head.partition(".")[0] == self.param != name:
            self.args = (f"{name}: {rest}",)
        self.param = name


class PromptTooLongError(RequestError):
    """A prompt (with the output it asks for) that exceeds the model's window."""


class BusyError(LoireError):
    """Too much of a kind is under way; the same may be taken a little later."""


class EngineError(LoireError):
    """The engine cannot go on: it was closed, or a step failed as a whole."""


class RankLostError(EngineError):
    """One of the processes that compute a model together is gone, and with it the others."""


class RequestTimeoutError(EngineError):
    """A request that had not ended when its time was over."""
