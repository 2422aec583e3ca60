"""Films with all a container can hold: pictures out of order, two sounds, subtitles, chapters, a cover, files."""

from fractions import Fraction

import av
import cv2
import numpy as np
from av.stream import Disposition

from tests.helpers.videos import RATE, noise

FRAMES, HEIGHT, WIDTH = 50, 48, 64
TEXTS = ((0.4, b"hello"), (1.2, b"world"))
CHAPTERS = ((0, "One"), (1, "Two"))
FILE = b"a file that comes along"


def pictures():
    """uint8 (50, 48, 64, 3): a soft pattern that moves; what an encoder loses of it shows."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    moving = [
        [127 + 100 * np.sin((x + 3 * t) / (4 + c)) * np.cos((y - t) / 5) for c in range(3)] for t in range(FRAMES)
    ]
    return np.stack(moving).transpose(0, 2, 3, 1).astype(np.uint8)


def cover():
    """A still image as a .png file."""
    return cv2.imencode(".png", pictures()[0])[1].tobytes()


def rich(path, *, timecode=None):
    """Writes a film of 2 s into .mp4, .mov or .mkv: H.264 with pictures out of order, and sound in two languages.

    Beside them: subtitles, chapters, a cover (not in .mov) and in .mkv an attached file.
    """
    matroska = path.suffix == ".mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "A film"
        container.set_chapters(
            [
                {
                    "id": number,
                    "start": 1000 * start,
                    "end": 1000 * (start + 1),
                    "time_base": Fraction(1, 1000),
                    "metadata": {"title": title},
                }
                for number, (start, title) in enumerate(CHAPTERS)
            ]  # fmt: skip
        )
        video = container.add_stream("libx264", rate=25, options={"crf": "12", "bf": "2", "b_strategy": "0"})
        video.height, video.width, video.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        video.codec_context.time_base = Fraction(1, 25)
        if timecode:
            video.metadata["timecode"] = timecode
        sounds = [container.add_stream("aac", rate=RATE, layout="mono") for _ in range(2)]
        for sound, language in zip(sounds, ("eng", "fra"), strict=True):
            sound.metadata["language"] = language
        subtitle = container.add_mux_stream("subrip" if matroska else "mov_text")
        subtitle.time_base = Fraction(1, 1000)
        subtitle.metadata["language"] = "eng"
        picture = None
        if matroska:
            container.add_attachment("cover.png", "image/png", cover())
            container.add_attachment("notes.txt", "text/plain", FILE)
        elif path.suffix == ".mp4":
            picture = container.add_mux_stream("png", width=WIDTH, height=HEIGHT)
            picture.time_base, picture.disposition = Fraction(1, 90_000), Disposition.attached_pic
        _fill(container, video, sounds, subtitle, picture)
    return path


def _fill(container, video, sounds, subtitle, picture):
    packets = []
    for number, pixels in enumerate(pictures()):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 25)
        packets += video.encode(frame)
    packets += video.encode(None)
    for seed, sound in enumerate(sounds):
        samples = noise(FRAMES / 25, seed=seed)[None].astype(np.float32) / 32768
        for first in range(0, samples.shape[1], 1024):
            piece = np.ascontiguousarray(samples[:, first : first + 1024])
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), first
            packets += sound.encode(frame)
        packets += sound.encode(None)
    for start, text in TEXTS:
        data = text if container.format.name == "matroska" else len(text).to_bytes(2, "big") + text
        packets.append(_packet(subtitle, data, round(1000 * start), 500))
    if picture is not None:
        packets.append(_packet(picture, cover(), 0, 1))
    for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
        container.mux(packet)


def _packet(stream, data, start, duration):
    packet = av.Packet(data)
    packet.pts = packet.dts = start
    packet.duration, packet.time_base, packet.stream = duration, stream.time_base, stream
    return packet
