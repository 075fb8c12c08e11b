"""Whether, and after what pause, another engine is started in the place of one that died.

An engine that has done real work is replaced at once. Otherwise the pauses grow, and end: sooner if
engines do not even become ready.
"""

from typing import NoReturn

from loire.base.errors import EngineError

REAL_WORK_STEPS = 32
"""Steps with news for clients after which an engine's life was worth something."""
MAX_FAILED_STARTS = 3
"""Engines in a row that die before they are ready."""
MAX_SHORT_LIVES = 10
"""Engines in a row that die before they have done real work: two minutes of pauses."""
FIRST_DELAY_S = 0.5
"""The pause doubles with each life that was too short."""
MAX_DELAY_S = 30.0


class Restarts:
    """Counts the lives of one supervisor's engines. num_short_lives: in a row, up to now."""

    def __init__(self) -> None:
        self.num_short_lives = 0
        self._num_failed_starts = 0
        self._num_steps = 0
        self._is_ready = False

    def became_ready(self) -> None:
        """The engine that runs now takes requests."""
        self._is_ready = True
        self._num_failed_starts = 0

    def did_step(self) -> None:
        """The engine that runs now has made a step that gave its clients something."""
        self._num_steps += 1
        if self._num_steps == REAL_WORK_STEPS:
            self.num_short_lives = 0

    def died(self, end: str, last_lines: tuple[str, ...]) -> float:
        """The pause before the next start, in seconds.

        end: how it ended, in words. last_lines: what it wrote. Raises EngineError if there is no
        use in another start.
        """
        self.num_short_lives += self._num_steps < REAL_WORK_STEPS
        self._num_failed_starts += not self._is_ready
        self._is_ready, self._num_steps = False, 0
        if self._num_failed_starts >= MAX_FAILED_STARTS:
            self._give_up(f"{self._num_failed_starts} times before it was ready", end, last_lines)
        if self.num_short_lives >= MAX_SHORT_LIVES:
            lives = f"{self.num_short_lives} times within its first {REAL_WORK_STEPS} steps"
            self._give_up(lives, end, last_lines)
        if not self.num_short_lives:
            return 0.0
        return min(FIRST_DELAY_S * 2.0 ** (self.num_short_lives - 1), MAX_DELAY_S)

    def _give_up(self, lives: str, end: str, last_lines: tuple[str, ...]) -> NoReturn:
        lines = "\n".join(last_lines)
        raise EngineError(
            f"the engine's process ended {lives} ({end}); the last lines it wrote:\n{lines}"
        )
