"""Clips that cannot serve: readers and samplers raise `UnusableClip`, the pipeline skips it; sources list them."""

from absl import logging

from mtd_jax.errors import UserError


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


def report_unusable(what: str, usable: int, listed: int, skipped: dict[str, list[str]]) -> None:
    """Logs the clips that a source leaves out, in one line.

    Args:
      what: the list, for people.
      usable, listed: how many clips.
      skipped: names by reason.

    Raises:
      UserError: none is usable.
    """
    reasons = "; ".join(f"{len(names)} {reason} (first: {names[0]})" for reason, names in sorted(skipped.items()))
    if not usable:
        raise UserError(f"{what}: none of its {listed} clips is usable: {reasons or 'the list is empty'}")
    if skipped:
        logging.warning("%s: %d of %d clips usable; left out: %s", what, usable, listed, reasons)
