"""A copy held against its source: what the container did not keep, and what people should know."""

from collections import Counter
from fractions import Fraction
from pathlib import Path

from mtd_jax.media.container import Faults, decoded, open_container, seconds, video_stream
from mtd_jax.media.copy_packets import Written
from mtd_jax.media.copy_plan import Plan, Refused, container_words, in_words, is_timecode, signature

_EXACT = Fraction(3, 1000)  # seconds; containers round time stamps, Matroska to milliseconds


def adjust(source: Path, copy: Path, plan: Plan, written: Written) -> bool:
    """Reads the copy back and changes the plan where it is not what was promised; whether there was need to.

    Raises:
      Refused: the container doesn't even keep what was encoded for it.
    """
    with open_container(source) as reader, open_container(copy) as result:
        if _streams_lost(reader, result, plan, copy) or _turn_lost(source, copy, plan):
            return True
        picture = video_stream(reader, source).index
        kept = plan.copied | plan.encoded.keys()
        sounds = [stream.index for stream in reader.streams.audio if stream.index in kept]
        pair = dict(zip([picture, *sounds], [video_stream(result, copy), *result.streams.audio], strict=False))
        sounds = [index for index in sounds if index in pair and written.times.get(index)]  # others are empty
        received: dict[int, list[Fraction]] = {stream.index: [] for stream in pair.values()}
        for packet in result.demux(*pair.values()):
            if packet.pts is not None:
                received[packet.stream.index].append(seconds(packet.pts, packet.time_base))
        found = {index: received[stream.index] for index, stream in pair.items()}
        moved = found[picture][0] - written.times[picture][0] if found[picture] else None
        rate = reader.streams[picture].average_rate
    late = [] if moved is None else [i for i in sounds if not _starts(written.times[i], found[i], moved)]
    if moved is None or not _keeps(written.times[picture], found[picture], plan, picture, rate):
        late = [picture]
    if late:
        # What was encoded for this container fits it, unless copied sound with its early start moved everything.
        copies = plan.copied.intersection(late if picture in late and picture in plan.copied else sounds)
        if not copies:
            raise Refused(f"{container_words(copy)} doesn't keep time stamps")
        for index in copies:
            plan.encode(index, f"{container_words(copy)} doesn't keep its time stamps")
        return True
    return _chapters_left_behind(source, copy, plan, moved)


def _streams_lost(reader, result, plan: Plan, copy: Path) -> bool:
    """MPEG-TS, for one, takes subtitles, but tells nobody that they are subtitles."""
    wanted = Counter(signature(reader.streams[index]) for index in plan.copied)
    lost = wanted - Counter(map(signature, result.streams))
    gone = [index for index in plan.copied if signature(reader.streams[index]) in lost]
    main = video_stream(reader, Path(reader.name)).index
    for index in gone:
        change = plan.encode if index == main or reader.streams[index].type == "audio" else plan.leave_out
        change(index, f"{container_words(copy)} doesn't keep what kind of stream it is")
    return bool(gone)


def _turn_lost(source: Path, copy: Path, plan: Plan) -> bool:
    """FLV and MPEG-TS cannot say that the camera was held upright."""
    turns = []
    for path in (source, copy):
        with open_container(path) as container:
            picture = video_stream(container, path)
            first = next(decoded(container, picture, Faults("picture")), None)
            turns.append((picture.index, first and first.rotation))
    (index, wanted), (_, found) = turns
    if index not in plan.copied or None in (wanted, found) or wanted == found:
        return False
    plan.encode(index, f"{container_words(copy)} doesn't keep that its pictures are to be turned")
    return True


def _starts(sent: list[Fraction], found: list[Fraction], moved: Fraction) -> bool:
    """Whether a stream starts when it should, seen from the pictures; in AVI all streams start at once."""
    return bool(found) and abs(found[0] - sent[0] - moved) <= _EXACT


def _keeps(sent: list[Fraction], found: list[Fraction], plan: Plan, picture: int, rate) -> bool:
    """Whether all pictures are due when they should be; ASF forgets the times of those sent out of order.

    Readers may cut the stream into other packets than the writer did; then their times cannot be told apart.
    """
    exact = _EXACT if picture in plan.copied or not rate else 1 / rate / 2 + _EXACT  # those encoded may be counted
    pairs = zip(sent, found, strict=False)
    return len(sent) != len(found) or all(abs((b - found[0]) - (a - sent[0])) <= exact for a, b in pairs)


def _chapters_left_behind(source: Path, copy: Path, plan: Plan, moved: Fraction) -> bool:
    """Where everything else starts later because the sound comes earlier, chapters must be told to."""
    with open_container(source) as reader, open_container(copy) as result:
        starts = [c.chapters()[0] if c.chapters() else None for c in (reader, result)]
    if None in starts or plan.chapters_delay:
        return False
    wanted, found = (seconds(chapter["start"], chapter["time_base"]) for chapter in starts)
    if abs(wanted + moved - found) <= _EXACT:
        return False
    plan.chapters_delay = wanted + moved - found
    return True


def notes(source: Path, copy: Path, plan: Plan, written: Written) -> list[str]:
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
    for index, reasons in written.encoding.items():
        lines += [f"{names[index]}: {reason}" for reason in reasons]
    for index, count in written.untimed.items():
        lines.append(f"{names[index]}: {count} packets without a time stamp were left out")
    return lines + ([written.damage] if written.damage else [])
