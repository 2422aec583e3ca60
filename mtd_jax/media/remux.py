"""The same file with its sound moved: packets are copied, only their time stamps change."""

import contextlib
import os
from fractions import Fraction
from pathlib import Path

import av

from mtd_jax.errors import UserError
from mtd_jax.media.container import audio_stream, open_container, video_stream
from mtd_jax.media.copy_check import adjust, notes
from mtd_jax.media.copy_plan import Plan, Refused, container_words, first_plan, is_cover
from mtd_jax.media.copy_write import write_copy


def shift_audio(source: str | os.PathLike, output: str | os.PathLike, delay_seconds: float) -> list[str]:
    """Writes a copy of a video whose sound (all streams of it) comes `delay_seconds` later (earlier if < 0).

    Packets are copied as they are: pictures, sound, subtitles, covers, attachments; chapters and tags too. Sound
    that would come before the first picture is marked to be skipped (MP4), or everything else starts later.
    What the output's container (chosen by its suffix) does not take is left out, but picture and sound are
    encoded anew, at high quality; encoded sound starts with the picture. The file appears whole or not at all.

    Args:
      source: of any format FFmpeg reads.
      output: may exist, but must not be the source.

    Returns:
      What is not as in the source, a line each: nothing if it was a pure copy.

    Raises:
      UserError: the output is the source, its container is unknown, or it cannot be written.
    """
    source, output = Path(source), Path(output)
    delay = Fraction(round(delay_seconds * 1_000_000), 1_000_000)
    check_output(source, output)
    partial = output.with_name(f".partial-{os.getpid()}-{output.name}")  # the suffix chooses the container
    try:
        plan = first_plan(source, partial)
        while True:  # ends: each turn but the last copies or encodes a stream fewer, or moves the chapters
            try:
                written = write_copy(source, partial, delay, plan)
                if not adjust(source, partial, plan, written):
                    break
            except Refused as error:
                _give_way(source, partial, delay, plan, error)
        told = notes(source, partial, plan, written)
        partial.replace(output)
        return told
    except Refused as error:
        advice = "another suffix may do, .mkv takes most streams"
        raise UserError(f"cannot write {output} ({error}); {advice}") from error
    except (OSError, MemoryError) as error:
        raise UserError(f"cannot write {output}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def check_output(source: str | os.PathLike, output: str | os.PathLike) -> None:
    """Raises `UserError` if `shift_audio` could not write there."""
    source, output = Path(source), Path(output)
    if output.is_dir() or (output.exists() and source.exists() and os.path.samefile(source, output)):
        raise UserError(f"{output}: is {'a folder' if output.is_dir() else 'the video itself'}; name a new file")
    if not output.parent.is_dir():
        raise UserError(f"{output}: there is no folder {output.parent}")
    expected = "expected a suffix such as .mp4, .mov or .mkv, which chooses the container"
    try:
        with av.open(f"file:{output}", "w") as writer:  # touches no file before the first packet
            codecs = writer.default_video_codec, writer.default_audio_codec
            many = writer.format.no_file
    except ValueError as error:
        raise UserError(f"{output}: {expected}") from error
    if codecs[0] in ("none", "png") or codecs[1] == "none" or many:  # PNG: files of sound, with a cover at most
        what = "is several files" if many else "doesn't hold moving pictures with sound"
        raise UserError(f"{output}: {container_words(output)} {what}; {expected}")


def _give_way(source: Path, partial: Path, delay: Fraction, plan: Plan, refusal: Refused) -> None:
    """Finds the streams that were refused by writing each alone; they are encoded, or left out.

    Raises:
      Refused: nothing is left to give.
    """
    with open_container(source) as reader:
        picture, sound = video_stream(reader, source).index, audio_stream(reader, source).index
        audio = {stream.index for stream in reader.streams.audio}
        # Files and covers are taken or refused before the first packet, and not every container holds them alone.
        still = {s.index for s in reader.streams if s.type == "attachment" or is_cover(s)}
    main = {picture, sound}
    singles = {i: Plan(copied={i}) for i in plan.copied - still}
    culprits = {i: why for i, single in singles.items() if (why := _alone(source, partial, delay, single))}
    if not culprits:
        singles = {i: Plan(encoded={i: plan.encoded[i]}) for i in plan.encoded}
        culprits = {i: why for i, single in singles.items() if (why := _alone(source, partial, delay, single))}
        if culprits.keys() & main:
            raise refusal
    if not culprits:  # only together: the least first
        extras = (plan.copied | plan.encoded.keys()) - main
        least = extras or plan.copied & {sound} or plan.copied & {picture}
        culprits = dict.fromkeys(least, str(refusal))
        if extras:
            audio -= extras
    if not culprits:
        raise refusal
    for index, reason in culprits.items():
        if index in plan.copied and (index in main or index in audio):
            plan.encode(index, reason)
        else:
            plan.leave_out(index, reason)


def _alone(source: Path, partial: Path, delay: Fraction, plan: Plan) -> str | None:
    """Why not even this can be written; None if it can."""
    try:
        write_copy(source, partial, delay, plan)
    except Refused as error:
        return str(error)
    return None
