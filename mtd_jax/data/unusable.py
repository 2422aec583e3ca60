"""The exception for a clip that cannot serve: readers and samplers raise it, the pipeline skips it."""


class UnusableClip(Exception):
    """A single clip that cannot be read or drawn from: a fault of its data; the others may be fine.

    Attributes:
      name: the clip's name within its source.
      reason: what is wrong with it, in words.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"
