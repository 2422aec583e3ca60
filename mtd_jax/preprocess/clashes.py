"""Videos whose clips would overwrite each other's, or lie inside one another.

The clips of a video called `s/a` are `s/a`, or `s/a_track1`, `s/a_track2`, …; how many is known only afterwards.
So it clashes with another `s/a`, with `s/a_track1`, and with `s/a/b`, whose clip would lie in its folder.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mtd_jax.preprocess.manifest import Record, video_of


def find_clashes(videos: Sequence[tuple[str, Path]], records: Sequence[Record]) -> dict[int, str]:
    """Which videos cannot be done, and why.

    What was done before stays. Otherwise two of the same name both lose, `s/a_track1` loses to `s/a`, and `s/a`
    to what the folder `s/a` holds, which may be much.

    Args:
      videos: (name, file) of this run.
      records: of earlier runs, those whose clips are there.

    Returns:
      Place in `videos` → the reason.
    """
    done = {record.name: record for record in records}
    places: dict[str, list[int]] = {}
    for place, (name, _) in enumerate(videos):
        places.setdefault(name, []).append(place)
    reasons: dict[int, str] = {}
    for place, (name, path) in enumerate(videos):
        for other, inside in _in_the_way_of(name):
            for rival in places.get(other, ()):
                loser, winner = (rival, place) if inside else (place, rival)
                if rival != place and not _was_done(videos[loser], done):
                    why = f"in the way of the clips of {videos[winner][1]}: rename one of the two"
                    reasons.setdefault(loser, why)
            record = done.get(other)
            if record is not None and not (other == name and record.is_of(path)):
                reasons.setdefault(place, _taken(record))
    for record in records:
        for other, _ in _in_the_way_of(record.name):
            for place in places.get(other, ()) if other != record.name else ():
                reasons.setdefault(place, _taken(record))
    return reasons


def _in_the_way_of(name: str) -> Iterator[tuple[str, bool]]:
    """Yields (a name that clashes with this one, whether the clips of this one would lie in folders of that)."""
    parts = name.split("/")
    for count in range(1, len(parts) + 1):
        prefix = "/".join(parts[:count])
        for other in dict.fromkeys((prefix, video_of(prefix))):
            yield other, count < len(parts)


def _was_done(video: tuple[str, Path], done: dict[str, Record]) -> bool:
    name, path = video
    return name in done and done[name].video == str(path)


def _taken(record: Record) -> str:
    clips = ", ".join(record.clips[:3]) + (", …" if len(record.clips) > 3 else "")
    return f"in the way of the clips of {record.video} from an earlier run: rename it, or delete them ({clips})"
