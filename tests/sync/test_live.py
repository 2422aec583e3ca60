"""Verdicts on streams: what is kept, what is said, how it ends."""

import json
import os
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import av
import imageio_ffmpeg
import numpy as np
import pytest

from mtd_jax.cli import run
from mtd_jax.errors import UserError
from mtd_jax.sync import live as module
from mtd_jax.synthetic.clips import portrait, record, shift_audio
from mtd_jax.video import stream as stream_module
from mtd_jax.video.decode import open_video, read
from mtd_jax.video.stream import RecentStream
from mtd_jax.video.write import write_mp4
from tests.helpers.scores import made_up
from tests.sync.test_detect import found


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """12 s as a transport stream, with a key frame every second and the audio early by 6 frames."""
    talk = record(0, 3, 0, 4.0)
    folder = tmp_path_factory.mktemp("live")
    frames, waveform = np.concatenate([portrait(talk)[0]] * 3), np.tile(talk.waveform, 3)
    write_mp4(folder / "film.mp4", frames, shift_audio(waveform, 6))
    path = folder / "film.ts"
    encode = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-c:a", "aac", "-f", "mpegts", path]
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    subprocess.run([ffmpeg, "-v", "error", "-i", folder / "film.mp4", *encode], check=True)
    return path


def newest(stream):
    """Lets the stream run to its end; returns the newest time."""
    time = -1.0
    while (now := stream.wait(time)) is not None:
        time = now
    return time


def test_the_last_seconds_are_kept_from_a_key_frame_on(film, tmp_path):
    with RecentStream(str(film), 3.0) as stream:
        end = newest(stream)
        assert stream.ended == "the stream has ended" and stream.write(tmp_path / "last.mkv")
    frames, waveform = read(tmp_path / "last.mkv")
    assert 75 <= len(frames) <= 102 and abs(len(waveform) / 640 - len(frames)) <= 3
    whole, _ = read(film)
    assert end == pytest.approx(12 + 1.4, abs=0.2)  # a transport stream begins at 1.4 s
    difference = np.abs(frames[-10:].astype(int) - whole[-10:])
    assert difference.max() == 0  # copied, not encoded again


def test_the_first_key_frame_counts_where_only_one_of_its_times_is_known(film, tmp_path):
    """As in Matroska files with B-frames, whose first packets have no time of decoding."""
    path = tmp_path / "film.mkv"
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    encode = ["-t", "3", "-c:v", "libx264", "-bf", "2", "-g", "250", "-c:a", "copy"]
    subprocess.run([ffmpeg, "-v", "error", "-i", film, *encode, path], check=True)
    with RecentStream(str(path), 3.0) as stream:
        newest(stream)
        assert stream.write(tmp_path / "last.mkv")
    assert len(read(tmp_path / "last.mkv")[0]) >= 72


def test_a_stream_whose_video_stops_ends(film, tmp_path, monkeypatch):
    """The audio that goes on must not be kept for ever."""
    monkeypatch.setattr(stream_module, "_SILENCE", 2.0)
    path = tmp_path / "stops.ts"
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    both = ["-t", "3", "-i", film, "-i", film, "-map", "0:v", "-map", "1:a", "-c", "copy"]
    subprocess.run([ffmpeg, "-v", "error", *both, path], check=True)
    with RecentStream(str(path), 2.0) as stream:
        newest(stream)
        assert stream.ended == "its video has stopped"
        assert len(stream._packets) < 200


def test_a_named_pipe_gives_a_line_per_second_and_ends(film, tmp_path, capsys, monkeypatch):
    times = []

    def detect(scorer, path, **_):
        with av.open(path) as recent:
            times.append(recent.duration / 1e6)
        if len(times) == 1:
            raise UserError(f"{path}: no face was found")
        return found(str(path), made_up([3] * 150))

    monkeypatch.setattr(module, "detect_offset", detect)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(film.read_bytes()))
    writer.start()
    assert run(["", "--mode=infer", f"--video={pipe}", "--live", "--live_seconds=4", "--faces=whole"]) == 0
    writer.join()
    first, *lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert first["verdict"] == "unknown" and first["warnings"] == ["no face was found"]
    assert lines and all(line["verdict"] == "out_of_sync" and line["offset_seconds"] == 0.12 for line in lines)
    assert all(later["time"] - line["time"] >= 0.99 for line, later in zip(lines, lines[1:], strict=False))
    assert max(times) < 5.5 and lines[-1]["model"]


def test_a_stream_over_http_is_measured(film, capsys):
    """By the included model, without anything replaced."""

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(film.parent))

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/film.ts"
        assert module.live(None, address, seconds=6.0) == 0
        server.shutdown()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["verdict"] == "out_of_sync" and abs(last["offset_seconds"] - 0.24) < 0.05, last


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--video=/nowhere/pipe"], "cannot be read as a stream"),
        (["--video=http://127.0.0.1:9/x"], "cannot be read as a stream (Connection refused)\n"),
        (["--video=x", "--json"], "--json does not go with --live"),
        (["--video=x", "--live_seconds=1"], "expected 2 to 60, got 1"),
    ],
)
def test_what_cannot_be_a_stream_is_one_line(flags, message, capsys):
    assert run(["", "--mode=infer", "--live", *flags]) == 1
    assert message in capsys.readouterr().err


def test_a_stream_is_usually_joined_between_key_frames(film, tmp_path):
    packets = film.read_bytes()
    (tmp_path / "joined.ts").write_bytes(packets[len(packets) // 8 // 188 * 188 :])
    with RecentStream(str(tmp_path / "joined.ts"), 60.0) as stream:
        newest(stream)
        assert stream.write(tmp_path / "last.mkv")
    video = open_video(tmp_path / "last.mkv")
    assert len(list(video.frames())) > 200 and len(video.waveform()) > 200 * 640
    assert not [line for line in video.warnings if "damaged" in line]


def test_a_clock_that_goes_back_ends_the_stream(film, tmp_path):
    (tmp_path / "twice.ts").write_bytes(film.read_bytes() * 2)
    with RecentStream(str(tmp_path / "twice.ts"), 3.0) as stream:
        assert newest(stream) == pytest.approx(12 + 1.4, abs=0.2)
        assert stream.ended == "its clock went back"


@pytest.mark.parametrize("closes, why", [(False, "nothing came for 1 s"), (True, "the connection was closed")])
def test_a_server_that_falls_silent_or_closes_ends_the_stream(film, monkeypatch, closes, why):
    monkeypatch.setattr(stream_module, "_SILENCE", 1.0)
    over = threading.Event()

    class Stalls(SimpleHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(film.read_bytes())
            closes or over.wait()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Stalls) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with RecentStream(f"http://127.0.0.1:{server.server_address[1]}/film.ts", 3.0) as stream:
            newest(stream)
            assert stream.ended == why
        over.set()
        server.shutdown()


def test_a_stream_without_a_single_frame_says_how_it_ended(film, tmp_path, capsys):
    """Its clip begins after the last key frame."""
    packets = film.read_bytes()
    (tmp_path / "end.ts").write_bytes(packets[-len(packets) // 40 // 188 * 188 :])
    assert run(["", "--mode=infer", "--live", f"--video={tmp_path}/end.ts"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path}/end.ts: ") and err.count("\n") == 1
