"""Clocks: whatever the container and wherever its clock starts, jumps or turns back, flash and click coincide."""

import dataclasses
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from mtd_jax.sync.ffmpeg import find_ffmpeg
from mtd_jax.video.decode import open_video
from tests.helpers.videos import RATE, mux, numbered, rotate_mp4, set_matrix
from tests.video.test_decode import remux

SOUND_RATE = 48_000  # Opus has no other
FLASHES = (0.8, 2.04, 3.8, 5.2)  # seconds, all on the grid of 25 fps; no two distances are alike
OTHERS = (0.6, 1.76, 3.12, 4.88)  # of a second part: none comes at the same place as in the first
LENGTH = 6.0  # seconds
LATE = 30  # seconds

# Every group of pictures is 2 s long, whatever flashes; pictures are stored out of order.
H264 = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "16", "-g", "50", "-sc_threshold", "0"]
H264 += ["-bf", "3", "-b_strategy", "0"]
AAC = ["-c:a", "aac", "-b:a", "128k"]
PCM = ["-c:a", "pcm_s16le"]
MPEG = ["-c:v", "mpeg2video", "-q:v", "3", "-bf", "2", "-c:a", "mp2", "-b:a", "128k"]
WEBM = ["-c:v", "libvpx", "-deadline", "realtime", "-b:v", "500k", "-c:a", "libopus", "-b:a", "96k"]


def burst(rate):
    """A click whose loudest moment is its middle: lossy codecs smear its ends, but not to one side."""
    times = np.arange(-round(0.006 * rate), round(0.006 * rate) + 1) / rate
    return np.exp(2j * np.pi * 2500 * times - (times / 0.0015) ** 2 / 2)


def sound_of(times, seconds, rate=SOUND_RATE):
    """int16 (samples,): a click at each of `times`."""
    sound, click = np.zeros(round(seconds * rate)), burst(rate).real
    for time in times:
        first = round(time * rate) - len(click) // 2
        sound[first : first + len(click)] += 24_000 * click
    return sound.astype(np.int16)


def pictures_of(times, shown):
    """uint8 (pictures, 48, 64, 3): white for 80 ms from each of `times`; else a number and a mark at the top left.

    Args:
      shown: when each picture is shown, in seconds.
    """
    pictures = numbered(256)[np.arange(len(shown)) % 256] // 2
    pictures[:, :12, :16] = 190
    for time in times:
        pictures[(shown > time - 1e-4) & (shown < time + 0.08 - 1e-4)] = 255
    return pictures


def shoot(
    path,
    *options,
    fps="25",
    flashes=FLASHES,
    length=LENGTH,
    video_start=0.0,
    sound_start=0.0,
    lag=0.0,
    stored=None,
):
    """A film by the FFmpeg command: flashes count from its first picture, and each comes with a click.

    Args:
      video_start, sound_start: when pictures and sound begin, on one clock.
      lag: seconds by which the container shows all pictures late, as it does not store when they are due.
      stored: what to do with each picture before it is stored.
    """
    numerator, _, denominator = fps.partition("/")
    rate = int(numerator) / int(denominator or 1)
    shown = np.arange(round(length * rate)) / rate
    if denominator:  # as the file can show it
        flashes = [float(shown[np.argmin(np.abs(shown - time))]) for time in flashes]
    pictures = pictures_of(flashes, shown)
    if stored is not None:
        pictures = np.stack([stored(picture) for picture in pictures])
    clicks = [video_start + lag - sound_start + time for time in flashes]
    sound = sound_of(clicks, video_start + lag - sound_start + length)
    raw = [path.with_suffix(".pictures"), path.with_suffix(".sound")]
    raw[0].write_bytes(pictures.tobytes())
    raw[1].write_bytes(sound.tobytes())
    height, width = pictures.shape[1:3]
    ffmpeg(
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-framerate", fps, "-i", raw[0]),
        *("-f", "s16le", "-ar", SOUND_RATE, "-ac", "1", "-i", raw[1], "-fps_mode", "passthrough"),
        *("-vf", f"setpts=PTS+{video_start}/TB,format=yuv420p", "-af", f"asetpts=PTS+{sound_start}/TB"),
        *("-threads", "1", *options, path),
    )
    return path


def ffmpeg(*arguments):
    subprocess.run(
        [find_ffmpeg(), "-v", "error", "-y", *map(str, arguments)], check=True, stdin=subprocess.DEVNULL
    )


def plain(name, *options, **kind):
    return lambda folder: shoot(folder / name, *(options or (*H264, *AAC)), **kind)


def joined(first_clock, second_clock, **kind):
    """Two films in one .ts; each begins at its own time on the clock."""

    def make(folder):
        parts = []
        for number, (clock, flashes) in enumerate([(first_clock, FLASHES), (second_clock, OTHERS)]):
            offset = ["-output_ts_offset", str(clock)]
            part = shoot(folder / f"{number}.ts", *H264, *AAC, *offset, flashes=flashes, **kind)
            parts.append(part.read_bytes())
        (folder / "joined.ts").write_bytes(b"".join(parts))
        return folder / "joined.ts"

    return make


def turned(stored, change, name="a.mp4"):
    """Pictures stored turned or mirrored, and a display matrix that makes them upright."""
    return lambda folder: change(shoot(folder / name, *H264, *AAC, stored=stored))


def rotated_mkv(folder):
    source = shoot(folder / "a.mp4", *H264, *AAC, stored=lambda picture: np.rot90(picture, -1))
    ffmpeg("-display_rotation", "90", "-i", source, "-c", "copy", folder / "b.mkv")
    return folder / "b.mkv"


def variable_rate(name):
    """Most pictures of every third half second are left out, but for those around a flash."""

    def make(folder):
        shown = np.arange(round(LENGTH * 25)) / 25
        near = np.any([np.abs(shown - time - 0.04) < 0.1 for time in FLASHES], axis=0)
        kept = near | (np.arange(len(shown)) // 12 % 3 != 1) | (np.arange(len(shown)) % 5 == 0)
        sound = sound_of(FLASHES, LENGTH)
        return mux(folder / name, pictures_of(FLASHES, shown)[kept], shown[kept], sound, rate=SOUND_RATE)

    return make


def cut_copy(name, start, *options):
    """Copied from `start` on: the file holds earlier packets, and says not to show them."""

    def make(folder):
        source = shoot(folder / f"whole-{name}", *H264, *AAC, *options)
        ffmpeg("-ss", start, "-i", source, "-c", "copy", folder / name)
        return folder / name

    return make


def without(name, leave_out, *options):
    """The packets for which `leave_out` holds are missing."""

    def make(folder):
        source = shoot(folder / f"whole-{name}", *(options or (*H264, *AAC)))
        return remux(source, folder / name, lambda packet: not leave_out(packet))

    return make


def early(packet):
    return packet.stream.type == "video" and packet.dts * packet.time_base < 1


def in_the_hole(packet):
    return packet.stream.type == "audio" and 2.5 < packet.pts * packet.time_base < 3.5


def headless(folder):
    """A recording that was switched on amid a group of pictures: half of the first 2 s is missing."""
    data = shoot(folder / "whole.ts", *H264, *AAC).read_bytes()
    (folder / "a.ts").write_bytes(data[len(data) // 6 // 188 * 188 :])
    return folder / "a.ts"


@dataclasses.dataclass
class Row:
    """A situation.

    Attributes:
      make: writes the file into a folder.
      flashes: seconds after the first picture.
      warnings: patterns, one for each line that is expected.
      off_grid: seconds by which a flash may seem to come earlier or later, as the file's pictures are not on the
        grid of 25 fps.
    """

    make: Callable[[Path], Path]
    flashes: tuple[float, ...] = FLASHES
    warnings: Sequence[str] = ()
    off_grid: float = 0.0


def after(start, flashes=FLASHES):
    return tuple(time - start for time in flashes if time >= start)


def both(second):
    return (*FLASHES, *(second + time for time in OTHERS))


LATE_FLASHES = (LATE + 0.8, LATE + 2.2, LATE + 3.8, LATE + 5.2)  # on the grid of 5 fps too
LATE_VIDEO = dict(video_start=LATE)
LATE_SOUND = dict(sound_start=LATE, length=LATE + LENGTH, fps="5", flashes=LATE_FLASHES)
FRAGMENTS = ["-movflags", "frag_keyframe+empty_moov"]
EDITED = ["-movflags", "frag_keyframe+delay_moov"]  # without it the file cannot say that a stream starts late
LEFT_OUT, JUMP, OVERLAP = (
    [rf"{kind}: the clock {what} was left out" for kind in ("video", "audio")]
    for what in (
        r"goes back at [56]\.\d s; what follows",
        r"jumps at [56]\.\d s; what follows",
        r"goes back by 0\.\d s at [56]\.\d s; what overlaps",
    )
)

ROWS = {
    # Containers.
    "mp4": Row(plain("a.mp4")),
    "mov with PCM": Row(plain("a.mov", *H264, *PCM)),
    "mkv": Row(plain("a.mkv")),
    "webm": Row(plain("a.webm", *WEBM)),
    "mpegts": Row(plain("a.ts")),
    "mpegts with MPEG-2": Row(plain("a.ts", *MPEG)),
    "avi": Row(plain("a.avi", *H264, *PCM, "-bf", "0")),
    "avi, pictures out of order": Row(plain("a.avi", *H264, *PCM, lag=0.08)),
    "mpeg-ps": Row(plain("a.mpg", *MPEG)),
    "flv": Row(plain("a.flv")),
    "flv with MP3": Row(plain("a.flv", *H264, "-c:a", "libmp3lame", "-ar", "44100")),
    "fragmented mp4": Row(plain("a.mp4", *H264, *AAC, *FRAGMENTS)),
    "fragmented mp4 with edit lists": Row(plain("a.mp4", *H264, *AAC, *EDITED)),
    # Starts.
    **{
        f"{name}, {which} {seconds} s later": Row(plain(f"a.{name}", **{f"{which}_start": seconds}))
        for name in ("mp4", "mkv", "ts", "flv")
        for which, seconds in (("sound", 0.36), ("video", 0.48))
    },
    **{f"{name}, pictures half a minute late": Row(plain(f"a.{name}", **LATE_VIDEO)) for name in
       ("mp4", "mkv", "ts", "flv")},
    **{f"{name}, sound half a minute late": Row(plain(f"a.{name}", **LATE_SOUND), LATE_FLASHES) for name in
       ("mp4", "mkv", "ts", "flv")},
    "fragmented mp4, pictures half a minute late": Row(plain("a.mp4", *H264, *AAC, *EDITED, **LATE_VIDEO)),
    "fragmented mp4, sound half a minute late": Row(
        plain("a.mp4", *H264, *AAC, *EDITED, **LATE_SOUND), LATE_FLASHES
    ),
    # The clock of MPEG-TS has 33 bits of 1/90000 s: it returns to 0 after 95443.7 s.
    "mpegts after 26 h": Row(plain("a.ts", *H264, *AAC, "-output_ts_offset", "93600")),
    "mpegts, the clock wraps midway": Row(plain("a.ts", *H264, *AAC, "-output_ts_offset", "95439.5")),
    "mpegts, the clock wraps at the start": Row(
        plain("a.ts", *H264, *AAC, "-output_ts_offset", "95442.2", sound_start=0.36)
    ),
    # Joined files.
    "joined, the clock back to the start": Row(joined(10, 10), warnings=LEFT_OUT),
    "joined, the clock back by an hour": Row(joined(3610, 10), warnings=JUMP),
    "joined, the clock back by 2 s": Row(joined(10, 14), warnings=LEFT_OUT),
    "joined, the clock back by 1 s": Row(joined(10, 15), warnings=LEFT_OUT),
    "joined, the clock back by 0.48 s": Row(joined(10, 15.52), both(5.52), OVERLAP),
    "joined, the clock goes on": Row(joined(10, 16), both(6)),
    "joined, the clock 20 s on": Row(
        joined(10, 36), both(26), ("video: one frame is shown for 20.0 s",)
    ),
    "joined, the clock half an hour on": Row(joined(10, 1816), warnings=JUMP),
    "joined, the clock ten minutes on": Row(joined(10, 616), warnings=JUMP),
    # Frame rates.
    "50 fps": Row(plain("a.mp4", fps="50")),
    "50 fps in mpegts": Row(plain("a.ts", fps="50")),
    "29.97 fps": Row(plain("a.mp4", fps="30000/1001"), off_grid=0.02),
    "29.97 fps in mkv": Row(plain("a.mkv", fps="30000/1001"), off_grid=0.02),
    "variable rate in mp4": Row(variable_rate("a.mp4")),
    "variable rate in mkv": Row(variable_rate("a.mkv")),
    # Display matrices.
    "turned left": Row(turned(lambda p: np.rot90(p, -1), lambda path: rotate_mp4(path, 90))),
    "turned right": Row(turned(lambda p: np.rot90(p, 1), lambda path: rotate_mp4(path, -90))),
    "turned around": Row(turned(lambda p: np.rot90(p, 2), lambda path: rotate_mp4(path, 180))),
    "mirrored": Row(turned(lambda p: p[:, ::-1], lambda path: set_matrix(path, (-1, 0, 0, 1)))),
    "upside down": Row(turned(lambda p: p[::-1], lambda path: set_matrix(path, (1, 0, 0, -1)))),
    "mirrored and turned": Row(turned(lambda p: p.swapaxes(0, 1), lambda path: set_matrix(path, (0, 1, 1, 0)))),
    "turned left in mkv": Row(rotated_mkv),
    # Cuts and holes.
    "mp4, cut by copying": Row(cut_copy("a.mp4", 1.52), after(1.52)),
    "mp4, open groups cut by copying": Row(cut_copy("a.mp4", 1.52, "-x264-params", "open-gop=1"), after(1.52)),
    "mp4 that begins amid a group": Row(without("a.mp4", early), after(2)),
    "mkv that begins amid a group": Row(without("a.mkv", early), after(2)),
    "mpegts that begins amid a group": Row(headless, after(2)),
    "mkv with a hole in PCM": Row(without("a.mkv", in_the_hole, *H264, "-bf", "0", *PCM)),
    "mp4 with a hole in AAC": Row(without("a.mp4", in_the_hole)),
}  # fmt: skip


def flashes_in(pictures):
    """The numbers of the first white picture of each flash."""
    white = np.array([picture.mean() > 220 for picture in pictures])
    return np.flatnonzero(white & ~np.append(False, white[:-1]))


def clicks_in(sound):
    """Seconds of each click: where a click of our shape fits best."""
    fit = np.abs(np.convolve(sound.astype(float), burst(RATE), "same"))
    loud = np.flatnonzero(fit > fit.max() / 2)
    groups = np.split(loud, np.flatnonzero(np.diff(loud) > RATE // 20) + 1)
    return np.array([group[np.argmax(fit[group])] for group in groups]) / RATE


def stretch(video, first, end):
    """Pictures first … end − 1 by their number, reached by seeking."""
    return {k: picture.rgb() for k, picture in video.pictures(None, first, end)}


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in ROWS.items()])
def test_flash_and_click_coincide(tmp_path, row):
    video = open_video(row.make(tmp_path))
    pictures, sound = [pixels for _, pixels in video.frames()], video.waveform()
    flashes, clicks = flashes_in(pictures), clicks_in(sound)
    slack = 0.002 + row.off_grid
    assert len(flashes) == len(row.flashes), (flashes / 25, clicks, video.warnings)
    assert np.abs(flashes / 25 - row.flashes).max() <= row.off_grid + 1e-6, (flashes / 25, clicks)
    assert len(clicks) == len(flashes), (flashes / 25, clicks, video.warnings)
    assert np.abs(clicks - flashes / 25).max() <= slack, clicks - flashes / 25
    assert len(video.warnings) == len(row.warnings), video.warnings
    assert all(map(re.match, row.warnings, video.warnings)), video.warnings

    mark = pictures[20 if flashes[0] != 20 else 19]
    assert mark.shape == (48, 64, 3)
    assert mark[2:10, 2:14].mean() > 150 and mark[-10:, 2:14].mean() < 140 and mark[2:10, -14:].mean() < 140

    for first in (1, 30, len(pictures) - 10) if video.can_seek else ():
        part = stretch(video, first, first + 10)
        assert list(part) == list(range(first, first + 10))
        assert all(np.array_equal(pixels, pictures[k]) for k, pixels in part.items()), first
