"""A copy held against its source: what the container did not keep, and what people should know."""

from collections import Counter
from fractions import Fraction
from pathlib import Path

from mtd_jax.media.container import open_container, seconds, video_stream
from mtd_jax.media.copied import Plan, Refused, container_words, in_words, is_timecode, signature
from mtd_jax.media.timing import Losses

_EXACT = Fraction(3, 1000)  # seconds; containers round time stamps, Matroska to milliseconds


def first_times(path: Path) -> tuple[Fraction, list[Fraction | None]]:
    """When the first packets are due, in seconds: of the main picture, and of each stream of sound.

    Raises:
      Refused: the picture has no time stamps.
    """
    with open_container(path) as container:
        picture, sounds = video_stream(container, path), container.streams.audio
        first: dict[int, Fraction] = {}
        for packet in container.demux(picture, *sounds):
            if packet.pts is not None and packet.stream.index not in first:
                first[packet.stream.index] = seconds(packet.pts, packet.time_base)
                if len(first) == 1 + len(sounds):
                    break
        if picture.index not in first:
            raise Refused("the pictures have no time stamps")
        return first[picture.index], [first.get(sound.index) for sound in sounds]


def adjust(source: Path, copy: Path, delay: Fraction, plan: Plan) -> bool:
    """Changes the plan where the copy is not what it promised; whether there was need to."""
    return _streams_lost(source, copy, plan) or _starts_lost(source, copy, delay, plan) or (
        _chapters_moved(source, copy, plan)
    )  # fmt: skip


def _streams_lost(source: Path, copy: Path, plan: Plan) -> bool:
    """MPEG-TS, for one, takes subtitles, but tells nobody that they are subtitles."""
    with open_container(source) as reader, open_container(copy) as result:
        wanted = Counter(signature(reader.streams[index]) for index in plan.copied)
        lost = wanted - Counter(map(signature, result.streams))
        gone = [index for index in plan.copied if signature(reader.streams[index]) in lost]
        main = video_stream(reader, source).index
        for index in gone:
            change = plan.encode if index == main or reader.streams[index].type == "audio" else plan.leave_out
            change(index, f"{container_words(copy)} doesn't keep what kind of stream it is")
    return bool(gone)


def _starts_lost(source: Path, copy: Path, delay: Fraction, plan: Plan) -> bool:
    """AVI keeps no time stamps: all its streams start at once."""
    with open_container(source) as reader:
        sounds = [stream.index for stream in reader.streams.audio]
    picture, starts = first_times(source)
    shown, results = first_times(copy)
    kept = [(i, start) for i, start in zip(sounds, starts, strict=True) if i in plan.copied or i in plan.encoded]
    off = [
        index
        for (index, start), result in zip(kept, results, strict=False)
        if index in plan.copied and None not in (start, result)
        if abs((result - shown) - (start - picture) - delay) > _EXACT
    ]
    for index in plan.copied & set(sounds) if off else ():
        plan.encode(index, f"{container_words(copy)} doesn't keep when a stream starts")
    return bool(off)


def _chapters_moved(source: Path, copy: Path, plan: Plan) -> bool:
    """Where everything else starts later because the sound comes earlier, chapters are left behind."""
    with open_container(source) as reader, open_container(copy) as result:
        wanted, found = reader.chapters(), result.chapters()
    if not wanted or not found or plan.chapters_delay:
        return False
    later = first_times(copy)[0] - first_times(source)[0]
    behind = later - (_start(found[0]) - _start(wanted[0]))
    if abs(behind) <= _EXACT:
        return False
    plan.chapters_delay = behind
    return True


def _start(chapter: dict) -> Fraction:
    return seconds(chapter["start"], chapter["time_base"])


def notes(source: Path, copy: Path, plan: Plan, losses: Losses) -> list[str]:
    """What is not as in the source, a line each."""
    with open_container(source) as reader, open_container(copy) as result:
        names = {stream.index: in_words(stream, reader) for stream in reader.streams}
        refused = f"was left out: {container_words(copy)} holds none"
        lines = [f"{names[index]} was left out: {reason}" for index, reason in sorted(plan.left_out.items())]
        lines += [f"{names[index]} was encoded anew ({reason})" for index, reason in sorted(plan.encoded.items())]
        if not any(map(is_timecode, result.streams)):
            lines += [f"{names[stream.index]} {refused}" for stream in reader.streams if is_timecode(stream)]
        wanted, found = len(reader.chapters()), len(result.chapters())
    if found < wanted:
        which = "the chapters were" if not found else f"{wanted - found} of {wanted} chapters were"
        lines.append(f"{which} left out: {container_words(copy)} holds {'none' if not found else 'fewer'}")
    for index, reasons in losses.encoding.items():
        lines += [f"{names[index]}: {reason}" for reason in reasons]
    for index, count in losses.untimed.items():
        lines.append(f"{names[index]}: {count} packets without a time stamp were left out")
    return lines + ([losses.damage] if losses.damage else [])
