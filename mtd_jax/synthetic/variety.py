"""How much synthetic speakers and scenes differ, aspect by aspect: for ablations, and for more of it."""

import dataclasses
from typing import Any

import numpy as np

from mtd_jax.errors import UserError

_MOST = 2.0


@dataclasses.dataclass(frozen=True)
class Variety:
    """A factor for each aspect: 1 as designed, 0 all alike, 2 (the most) twice as far from the average.

    Of `mouth` and `beard` it is how much of them is seen, not how much they differ.

    Attributes:
      identity: shapes and colours of faces.
      mouth: how visible teeth and tongue are; 0: the open mouth is dark, 1 and more: as designed.
      beard: how dense beards are.
      light: its direction, strength and colour.
      pose: head motion.
      camera: blur, noise, flicker and shaking crops.
      voice: pitch, vocal tract, timbre and rate.
      articulation: how clearly mouths move.

    Raises:
      UserError: a factor outside 0 … 2.
    """

    identity: float = 1.0
    mouth: float = 1.0
    beard: float = 1.0
    light: float = 1.0
    pose: float = 1.0
    camera: float = 1.0
    voice: float = 1.0
    articulation: float = 1.0

    def __post_init__(self) -> None:
        for name, factor in dataclasses.asdict(self).items():
            if not 0 <= factor <= _MOST:
                raise UserError(f"variety {name}: expected a factor from 0 to {_MOST:g}, got {factor}")

    @classmethod
    def parse(cls, settings: list[str]) -> "Variety":
        """Of settings such as ["beard=0", "pose=2"]. Raises `UserError`."""
        factors: dict[str, float] = {}
        names = [field.name for field in dataclasses.fields(cls)]
        for setting in settings:
            name, _, factor = setting.partition("=")
            try:
                factors[name] = float(factor)
            except ValueError:
                raise UserError(f"variety: expected NAME=FACTOR such as beard=0, got {setting!r}") from None
            if name not in names:
                raise UserError(f"variety: expected one of {', '.join(names)}, got {name!r}")
        return cls(**factors)

    @property
    def changes(self) -> dict[str, float]:
        """The factors that are not 1."""
        return {name: factor for name, factor in dataclasses.asdict(self).items() if factor != 1}


AS_DESIGNED = Variety()


@dataclasses.dataclass(frozen=True)
class Spread:
    """A generator whose draws lie `factor` times as far from their mean, with the same random numbers."""

    rng: np.random.Generator
    factor: float

    def uniform(self, low: float = 0.0, high: float = 1.0, size: Any = None) -> Any:
        return self._spread(self.rng.uniform(low, high, size), (low + high) / 2)

    def normal(self, mean: float, deviation: float, size: Any = None) -> Any:
        return self._spread(self.rng.normal(mean, deviation, size), mean)

    def standard_normal(self, size: Any) -> Any:
        return self._spread(self.rng.standard_normal(size), 0.0)

    def _spread(self, drawn: Any, mean: float) -> Any:
        return drawn if self.factor == 1 else mean + self.factor * (drawn - mean)
