"""Copies with moved audio: exact delays, identical frames, everything kept or named, failures in one line."""

import errno
import itertools
import os
import subprocess
import sys

import av
import numpy as np
import pytest
from av.stream import Disposition

from mtd_jax.errors import UserError
from mtd_jax.sync.ffmpeg import find_ffmpeg
from mtd_jax.sync.fix import check_output, move_audio, shift_audio
from mtd_jax.video.decode import open_video, read
from tests.helpers.rich_films import CHAPTERS, FILE, cover, pictures, rich
from tests.helpers.videos import damage, lag_seconds, mux, noise, number_of, numbered, rotate_mp4

DELAYS = (0.1234, -0.2817)


def film(path, **options):
    return mux(path, numbered(50), np.arange(50) / 25, noise(2.0), **options)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """The first has its frames in order, the others have B-frames and all that their containers hold."""
    folder = tmp_path_factory.mktemp("films")
    return {
        "simple": film(folder / "simple.mp4"),
        "mp4": rich(folder / "rich.mp4"),
        "mkv": rich(folder / "rich.mkv"),
        "mov": rich(folder / "rich.mov", timecode="01:00:00:00"),
        "ts": film(folder / "late.ts", sound_start=0.12),  # its clock starts at 1.4 s
    }


def ffmpeg(*arguments):
    subprocess.run([find_ffmpeg(), "-v", "error", "-y", *map(str, arguments)], check=True)


def tracks(path):
    """By kind and number of the stream: packets as (dts, pts, bytes), in seconds."""
    found = {}
    with av.open(str(path)) as container:
        counts = {
            kind: itertools.count() for kind in ("video", "audio", "subtitle", "cover", "data", "attachment")
        }
        names = {}
        for s in container.streams:
            kind = "cover" if s.disposition & Disposition.attached_pic else s.type
            names[s.index] = kind, next(counts[kind])
        for p in container.demux():
            if p.size:
                times = [None if t is None else float(t * p.time_base) for t in (p.dts, p.pts)]
                found.setdefault(names[p.stream.index], []).append((*times, bytes(p)))
    return found


def check_moved(source, target, delay, tolerance=0.001):
    before, after = open_video(source), open_video(target)
    assert lag_seconds(after.waveform(), before.waveform()) == pytest.approx(delay, abs=tolerance)
    assert after.count_frames() == before.count_frames()
    for (kind, _), track in tracks(target).items():  # no player has to guess
        decoding = [dts for dts, _, data in track if dts is not None and len(data) > 2]  # not MP4's empty texts
        assert all(b > a for a, b in itertools.pairwise(decoding)), kind


def notes_about(notes, *words):
    """Whether there are as many notes as words, each about one of them."""
    return len(notes) == len(words) and all(any(word in note for note in notes) for word in words)


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "ts", "flv"])
@pytest.mark.parametrize("kind", ["simple", "mkv", "ts"])
def test_audio_moves_by_the_delay_and_video_is_copied(films, tmp_path, kind, suffix, delay):
    source, target = films[kind], tmp_path / f"out.{suffix}"
    assert not any("encoded" in note for note in shift_audio(source, target, delay))
    check_moved(source, target, delay)
    assert np.array_equal(read(target)[0], read(source)[0])
    wanted, found = tracks(source)["video", 0], tracks(target)["video", 0]
    steps = [[pts - track[0][1] for _, pts, _ in track] for track in (wanted, found)]
    assert steps[1] == pytest.approx(steps[0], abs=0.002)
    if kind != "ts" and suffix in ("mp4", "mov", "mkv"):  # the others store the same data in another form
        assert [data for *_, data in found] == [data for *_, data in wanted]
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_no_delay_is_a_plain_copy_and_the_opposite_delay_undoes_one(films, tmp_path):
    assert shift_audio(films["mp4"], tmp_path / "same.mp4", 0) == []
    check_moved(films["mp4"], tmp_path / "same.mp4", 0)
    shift_audio(films["mp4"], tmp_path / "early.mp4", -0.2817)
    shift_audio(tmp_path / "early.mp4", tmp_path / "back.mp4", 0.2817)
    check_moved(films["mp4"], tmp_path / "back.mp4", 0)
    audio = [[data for *_, data in tracks(path)["audio", 0]] for path in (films["mp4"], tmp_path / "back.mp4")]
    assert audio[0] == audio[1]  # MP4 keeps what players skip


def test_only_the_chosen_audio_moves(films, tmp_path):
    for kind, moved in (("mkv", 2), ("mov", 1)):
        shift_audio(films[kind], target := tmp_path / f"out.{kind}", 0.48, moved)
        before, after = tracks(films[kind]), tracks(target)
        zero = after["video", 0][0][1] - before["video", 0][0][1]
        for number in (1, 2):
            late = after["audio", number - 1][-1][1] - before["audio", number - 1][-1][1] - zero
            assert late == pytest.approx(0.48 if number == moved else 0, abs=0.002)


def test_the_measured_audio_is_found_again_in_the_copy(films, tmp_path):
    """Where a container has room for one, it is this one that is kept."""
    notes, number = move_audio(films["mkv"], tmp_path / "out.flv", 0.2, measured_track=2)
    kept = len([kind for kind, _ in tracks(tmp_path / "out.flv") if kind == "audio"])
    assert number == kept or not notes_about(notes, "audio stream")
    assert move_audio(films["mkv"], tmp_path / "out.mkv", 0.2, measured_track=2)[1] == 2


def test_everything_in_the_file_comes_along(films, tmp_path):
    for kind, lost in (("mp4", []), ("mov", []), ("mkv", ["the cover"])):
        target = tmp_path / f"out.{kind}"
        for delay in DELAYS:
            assert notes_about(shift_audio(films[kind], target, delay), *lost)
            before, after = tracks(films[kind]), tracks(target)
            zero = after["video", 0][0][1] - before["video", 0][0][1]
            wanted = [(pts + zero, data) for _, pts, data in before["subtitle", 0] if len(data) > 2]
            found = [(pts, data) for _, pts, data in after["subtitle", 0] if len(data) > 2]
            assert [data for _, data in found] == [data for _, data in wanted]
            assert [pts for pts, _ in found] == pytest.approx([pts for pts, _ in wanted], abs=0.002)
            second = [track["audio", 1][-1][1] for track in (before, after)]
            assert second[1] - second[0] == pytest.approx(delay + zero, abs=0.002)
            with av.open(str(target)) as container:
                chapters = [
                    (float(c["start"] * c["time_base"]), c["metadata"]["title"]) for c in container.chapters()
                ]
                assert chapters == [(start, title) for start, title in CHAPTERS]
                assert [s.metadata["language"] for s in container.streams.audio] == ["eng", "fra"]
                assert container.metadata["title"] == "A film"
                files = {s.name: s.data for s in container.streams if s.type == "attachment"}
                assert files == ({"notes.txt": FILE} if kind == "mkv" else {})
                timecodes = [s.metadata["timecode"] for s in container.streams if s.metadata.get("timecode")]
                assert set(timecodes) == ({"01:00:00:00"} if kind == "mov" else set())
    assert [data for *_, data in tracks(tmp_path / "out.mp4")["cover", 0]] == [cover()]


@pytest.mark.parametrize(
    "kind, suffix, notes",
    [
        ("mkv", "mp4", ["subtitle stream 3 (srt, eng) was converted (mov_text", "notes.txt) was dropped"]),
        ("mp4", "mov", ["the cover stream 5 (png) was dropped"]),
        (
            "mp4",
            "mkv",
            ["subtitle stream 3 (mov_text, eng) was converted", "the cover stream 5 (png) was dropped"],
        ),
        ("mkv", "ts", ["the subtitle", "the cover", "notes.txt", "2 of 2 chapters"]),
        ("mov", "mkv", ["the subtitle", "the timecode"]),
    ],
)
def test_what_the_container_does_not_hold_is_named(films, tmp_path, kind, suffix, notes):
    target = tmp_path / f"out.{suffix}"
    assert notes_about(shift_audio(films[kind], target, 0.1234), *notes)
    check_moved(films[kind], target, 0.1234)
    assert {kind for kind, _ in tracks(target)} <= {"video", "audio", "subtitle", "cover", "data"}
    assert np.array_equal(read(target)[0], read(films[kind])[0])


@pytest.mark.parametrize("suffix", ["avi", "wmv", "mpg", "webm"])
def test_refused_or_garbled_streams_are_re_encoded_and_named(films, tmp_path, suffix):
    source, target = films["mp4"], tmp_path / f"out.{suffix}"
    for delay in DELAYS:
        notes = shift_audio(source, target, delay)
        assert any(note.startswith("the video was re-encoded") for note in notes)
        assert sum("audio stream" in note for note in notes) == (0 if suffix == "wmv" else 2)
        check_moved(source, target, delay)
        frames = read(target)[0]
        assert len(frames) == len(pictures()) and sum(kind == "audio" for kind, _ in tracks(target)) == 2
        loss = np.mean((frames.astype(float) - read(source)[0]) ** 2)
        assert 10 * np.log10(255**2 / loss) > 38


def test_only_the_refused_stream_is_re_encoded(tmp_path):
    """MPEG-TS takes this video, but not this audio."""
    source, target = film(tmp_path / "a.mkv", audio_codec="flac"), tmp_path / "out.ts"
    for delay in DELAYS:
        assert notes_about(shift_audio(source, target, delay), "the audio was re-encoded (aac, 16000 Hz, mono")
        check_moved(source, target, delay)
        assert np.array_equal(read(target)[0], read(source)[0])


@pytest.mark.parametrize("degrees", [90, 180])
@pytest.mark.parametrize("suffix, encoded", [("mp4", False), ("mkv", False), ("ts", True), ("flv", True)])
def test_frames_stay_upright(tmp_path, suffix, encoded, degrees):
    source, target = rotate_mp4(film(tmp_path / "a.mp4"), degrees), tmp_path / f"out.{suffix}"
    notes = shift_audio(source, target, 0.1234)
    assert [note.startswith("the video was re-encoded") for note in notes] == [True] * encoded
    before, after = read(source)[0], read(target)[0]
    assert after.shape[1:] == before.shape[1:] == ((64, 48, 3) if degrees == 90 else (48, 64, 3))
    assert np.abs(after.astype(int) - before[: len(after)]).mean() < 2


def test_mirrored_and_anamorphic_frames_keep_their_look(films, tmp_path):
    source = tmp_path / "a.mov"
    ffmpeg("-display_hflip", "-i", films["simple"], "-c", "copy", "-aspect", "8:3", source)

    def shown(path):
        """The first frame, and how it is shown: mirrored, width / height."""
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            matrix = [
                np.frombuffer(bytes(d), np.int32)[0] for d in frame.side_data if d.type.name == "DISPLAYMATRIX"
            ]
            aspect = frame.width / frame.height * float(container.streams.video[0].sample_aspect_ratio or 1)
            return frame.to_ndarray(format="rgb24"), matrix == [-65536], round(aspect, 2)

    assert shown(source)[1:] == (True, 2.67)
    for suffix, encoded in (("mp4", False), ("mkv", False), ("ts", True), ("avi", True)):
        notes = shift_audio(source, tmp_path / f"out.{suffix}", 0.1234)
        pixels, mirrored, aspect = shown(tmp_path / f"out.{suffix}")
        assert aspect == 2.67 and mirrored is not encoded
        assert any("video was re-encoded" in note for note in notes) == encoded
        left, right = pixels[:, : pixels.shape[1] // 2].mean(), pixels[:, pixels.shape[1] // 2 :].mean()
        original = shown(source)[0]
        assert (left - right) * (original[:, :32].mean() - original[:, 32:].mean()) * (-1 if encoded else 1) >= 0


def test_a_change_of_size_squeezes_no_frame(tmp_path):
    """Frames of another shape get borders where the video is re-encoded, and stay as they are in a copy."""
    for name, (height, width) in {"a.ts": (48, 64), "b.ts": (64, 48)}.items():
        mux(tmp_path / name, np.full((25, height, width, 3), 200, np.uint8), np.arange(25) / 25, noise(1.0))
    (tmp_path / "joined.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    for suffix, sizes in (("ts", {(48, 64), (64, 48)}), ("webm", {(48, 64)})):
        shift_audio(tmp_path / "joined.ts", tmp_path / f"out.{suffix}", 0.1234)
        with av.open(str(tmp_path / f"out.{suffix}")) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert {frame.shape[:2] for frame in frames} == sizes and len(frames) == 50
        if suffix == "webm":
            assert np.mean(frames[-1][24] > 100) == pytest.approx(36 / 64, abs=0.05)


def test_uneven_times_and_odd_sizes_survive_a_container_that_counts_frames(tmp_path):
    times = np.cumsum(np.r_[0, np.random.default_rng(0).uniform(0.02, 0.06, 49)])
    source = mux(tmp_path / "a.mp4", numbered(50, 49, 65), times, noise(2.0))
    notes = shift_audio(source, tmp_path / "out.avi", -0.2817)
    assert notes_about(notes, "the video was re-encoded", "the audio was re-encoded")
    before, after = read(source)[0], read(tmp_path / "out.avi")[0]
    assert np.mean([abs(number_of(a) - number_of(b)) for a, b in zip(after, before, strict=False)]) < 0.2
    assert len(after) >= len(before) - 1 and after.shape[1:] == (48, 64, 3)


def test_re_encoded_audio_keeps_its_holes(tmp_path):
    whole = mux(tmp_path / "whole.mkv", numbered(75), np.arange(75) / 25, noise(3.0))
    with av.open(str(whole)) as reader, av.open(str(tmp_path / "hole.mkv"), "w") as writer:
        copies = {s.index: writer.add_stream_from_template(s) for s in reader.streams}
        for p in reader.demux():
            if p.size and (p.stream.type == "video" or not 1 < p.pts * p.time_base < 2):
                p.stream = copies[p.stream.index]
                writer.mux(p)
    for suffix in ("avi", "webm"):
        shift_audio(tmp_path / "hole.mkv", tmp_path / f"out.{suffix}", 0.1234)
        sound, behind = open_video(tmp_path / f"out.{suffix}").waveform(), slice(36_000, 46_000)
        assert lag_seconds(sound[behind], noise(3.0)[behind]) == pytest.approx(0.1234, abs=0.002)


def test_av1_is_copied(tmp_path):
    """FFmpeg decodes it with one library and encodes it with others."""
    source = tmp_path / "a.mkv"
    with av.open(str(source), "w") as container:
        video = container.add_stream("libsvtav1", rate=25, options={"preset": "12"})
        video.height, video.width, video.pix_fmt = 64, 64, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for frame in numbered(10, 64, 64):
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))
        samples = av.AudioFrame.from_ndarray(noise(0.4)[None], format="s16", layout="mono")
        samples.sample_rate = 16_000
        container.mux(audio.encode(samples))
    assert shift_audio(source, tmp_path / "out.mkv", 0.1234) == []


def test_files_without_presentation_times_are_copied(films, tmp_path):
    ffmpeg("-i", films["simple"], "-c:v", "mpeg4", "-bf", "2", "-c:a", "pcm_s16le", tmp_path / "a.avi")
    shift_audio(tmp_path / "a.avi", tmp_path / "out.mkv", 0.1234)
    check_moved(tmp_path / "a.avi", tmp_path / "out.mkv", 0.1234)


def test_damage_is_reported_and_what_can_be_read_is_copied(tmp_path):
    source = damage(film(tmp_path / "a.mkv"))
    for suffix in ("mkv", "mp4"):
        shift_audio(source, tmp_path / f"out.{suffix}", 0.1234)
        check_moved(source, tmp_path / f"out.{suffix}", 0.1234)
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    notes = shift_audio(source, tmp_path / "out.mkv", 0.1234)
    assert notes_about(notes, "FFmpeg reports: ")
    check_moved(source, tmp_path / "out.mkv", 0.1234)


def test_refusals_leave_everything_as_it_was(tmp_path):
    source = film(tmp_path / "a.mp4")
    content = source.read_bytes()
    (tmp_path / "link.mp4").symlink_to(source)
    for output, message in (
        ("a.mp4", "the video itself"), ("link.mp4", "the video itself"), ("out.xyz", "suffix"), ("out", "suffix"),
        ("no/out.mp4", "cannot write"), (".", "suffix"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message) as caught:
            shift_audio(source, tmp_path / output, 0.16)
        assert "\n" not in str(caught.value)
    assert source.read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 2


def test_sources_that_cannot_be_moved_are_one_line(tmp_path):
    silent = mux(tmp_path / "silent.mp4", numbered(5), np.arange(5) / 25, None)
    (tmp_path / "text.mp4").write_text("no video")
    for source, message in (
        (silent, "has no audio stream"), (tmp_path / "text.mp4", "not a video"),
        (tmp_path / "missing.mp4", "no such file"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            shift_audio(source, tmp_path / "out.mp4", 0.16)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("suffix", ["gif", "mp3", "wav", "flac", "png", "srt", "m3u8", "h264"])
def test_containers_that_hold_no_film_are_refused_before_any_work(tmp_path, suffix):
    with pytest.raises(UserError, match=f"out.{suffix}: .*expected a suffix such as .mp4"):
        check_output(tmp_path / "a.mp4", tmp_path / f"out.{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_is_no_reason_to_encode(films, tmp_path, monkeypatch, code):
    """A command that exits as FFmpeg does on a full disk is run once."""
    fake = tmp_path / "bin" / "ffmpeg"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\ncase "$*" in *anullsrc*) exit 0;; esac\necho x >> {tmp_path}/runs\nexit {256 - code}\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=os.pathsep)
    with pytest.raises(UserError, match=f"cannot write .*out.mp4: {os.strerror(code)}$"):
        shift_audio(films["simple"], tmp_path / "out.mp4", 0.16)
    assert (tmp_path / "runs").read_text() == "x\n" and not list(tmp_path.glob("*out*"))


def test_a_system_ffmpeg_without_the_packet_filters_is_not_used(tmp_path, monkeypatch):
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert find_ffmpeg() != str(fake)
    fake.write_text("#!/bin/sh\nexit 0\n")
    assert find_ffmpeg() == str(fake)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(tmp_path, suffix):
    """A limit on the size of files fails as a full disk does: in the midst of writing."""
    source, target = film(tmp_path / "a.mp4"), tmp_path / f"out.{suffix}"
    limit = source.stat().st_size // 2
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "import sys; from mtd_jax.errors import UserError; from mtd_jax.sync.fix import shift_audio\n"
        "try: shift_audio(sys.argv[1], sys.argv[2], 0.16)\n"
        "except UserError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code, source, target], capture_output=True, text=True, timeout=100)
    assert run.stdout == f"cannot write {target}: File too large\n", run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
