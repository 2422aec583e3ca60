"""Video files made at test time: every picture carries its own number, the sound is noise that can be located."""

import struct
from fractions import Fraction

import av
import numpy as np

RATE = 16_000


def numbered(count, height=48, width=64):
    """uint8 pictures that show their number: sixteens on the left half, units on the right."""
    pictures = np.zeros((count, height, width, 3), np.uint8)
    for number, picture in enumerate(pictures):
        picture[:, : width // 2] = 8 + 15 * (number // 16)
        picture[:, width // 2 :] = 8 + 15 * (number % 16)
    return pictures


def number_of(picture):
    """What `numbered` wrote, after any codec."""
    height, width = picture.shape[:2]
    middle = picture[height // 4 : -(height // 4)].astype(float)
    sixteens, units = middle[:, width // 8 : 3 * width // 8].mean(), middle[:, 5 * width // 8 : -width // 8].mean()
    return 16 * round((sixteens - 8) / 15) + round((units - 8) / 15)


def noise(seconds, rate=RATE, seed=0):
    """int16 (samples,): smooth noise, the same on the clock at every sample rate."""
    rng = np.random.default_rng(seed)
    knots = rng.standard_normal(int(seconds * 2000) + 8)
    times = np.arange(int(seconds * rate)) / rate
    return (5000 * np.interp(times * 2000, np.arange(len(knots)), knots)).astype(np.int16)


def lag_seconds(sound, reference):
    """By how much `sound` comes later than `reference`, both at 16 kHz."""
    size = 1 << (len(sound) + len(reference)).bit_length()
    product = np.fft.rfft(sound.astype(float), size) * np.conj(np.fft.rfft(reference.astype(float), size))
    lag = int(np.argmax(np.fft.irfft(product, size)))
    return (lag if lag < size // 2 else lag - size) / RATE


def mux(path, pictures, times, sound, *, sound_start=0.0, rate=RATE, layout="mono", video_codec="libx264",
        audio_codec="aac", options=None):  # fmt: skip
    """Writes pictures at `times` (seconds) and `sound` from `sound_start` on; either may be None."""
    clock = Fraction(1, 90_000)
    with av.open(str(path), "w", options=options or {}) as container:
        video = audio = None
        if pictures is not None:
            fps = Fraction(1 / np.median(np.diff(times))).limit_denominator(1001) if len(times) > 1 else 25
            video = container.add_stream(video_codec, rate=fps, options={"crf": "12", "preset": "ultrafast"})
            video.height, video.width = pictures.shape[1:3]
            even = pictures.shape[1] % 2 == pictures.shape[2] % 2 == 0
            video.pix_fmt = "yuvj420p" if video_codec == "mjpeg" else "yuv420p" if even else "yuv444p"
            video.codec_context.time_base = clock
        if sound is not None:
            audio = container.add_stream(audio_codec, rate=rate, layout=layout)
            channels = np.repeat(sound[None], audio.codec_context.layout.nb_channels, axis=0)
        queue = [] if video is None else [(time, picture) for time, picture in zip(times, pictures, strict=True)]
        written = 0
        while queue or (audio is not None and written < len(sound)):
            sound_time = sound_start + written / rate
            if queue and (audio is None or written >= len(sound) or queue[0][0] <= sound_time):
                time, picture = queue.pop(0)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = round(time / clock), clock
                container.mux(video.encode(frame))
            else:
                piece = np.ascontiguousarray(channels[:, written : written + 1024])
                planar = av.AudioFrame.from_ndarray(piece.astype(np.float32) / 32768, format="fltp", layout=layout)
                planar.sample_rate, planar.time_base = rate, Fraction(1, rate)
                planar.pts = written + round(sound_start * rate)
                container.mux(audio.encode(planar))
                written += piece.shape[1]
        for stream in (video, audio):
            if stream is not None:
                container.mux(stream.encode(None))
    return path


def rotate_mp4(path, degrees):
    """Makes players turn an .mp4 of `mux` counter-clockwise: sets the matrix of its first track's header."""
    cos, sin = {90: (0, 1), 180: (-1, 0), -90: (0, -1)}[degrees]
    return set_matrix(path, (cos, -sin, sin, cos))


def set_matrix(path, matrix):
    """Sets the display matrix (2 × 2) of the first track of an .mp4 of `mux`."""
    data = path.read_bytes()
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    place = data.index(upright, data.index(b"tkhd"))
    a, b, c, d = (entry << 16 for entry in matrix)
    turned = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:place] + turned + data[place + len(turned) :])
    return path


def damage(path):
    """Overwrites the middle of the video packets from the 30th on, as a bad disk does."""
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size][30:60]
    data = bytearray(path.read_bytes())
    for position, size in places:
        data[position + size // 2 : position + size] = bytes(size - size // 2)
    path.write_bytes(data)
    return path


def with_squares(frames, squares, height=96, width=160):
    """Grey pictures (frames, height, width, 3) with coloured squares.

    Args:
      squares: colour → function of the frame that gives (x, y, side) or None.
    """
    pictures = np.full((frames, height, width, 3), 110, np.uint8)
    for frame, picture in enumerate(pictures):
        for colour, place in squares.items():
            if (where := place(frame)) is not None:
                x, y, side = where
                picture[y : y + side, x : x + side] = COLOURS[colour]
    return pictures


COLOURS = {"red": (230, 30, 30), "blue": (30, 30, 230)}


class SquareDetector:
    """A face detector whose faces are the squares of `with_squares`; counts the pictures it was shown."""

    def __init__(self):
        self.seen = 0

    def detect(self, frames):
        self.seen += len(frames)
        return [np.array([box for c in COLOURS.values() for box in self._find(f, c)], np.float32).reshape(-1, 5)
                for f in frames]  # fmt: skip

    @staticmethod
    def _find(frame, colour):
        rows, columns = np.nonzero(np.abs(frame.astype(int) - colour).max(axis=2) < 60)
        if len(rows) > 100:
            yield [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, 0.9]
