"""Copies with moved sound keep what else a film holds, or name what they leave out."""

import itertools

import av
import numpy as np
import pytest
from av.stream import Disposition

from mtd_jax.media.decode import open_video, read
from mtd_jax.media.remux import shift_audio
from tests.rich_films import CHAPTERS, FILE, TEXTS, cover, pictures, rich
from tests.videos import lag_seconds, mux, noise, numbered

DELAYS = (0.16, -0.28)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rich")


@pytest.fixture(scope="module")
def films(folder):
    return {
        "mp4": rich(folder / "png.mp4"),
        "jpg.mp4": rich(folder / "jpg.mp4", cover_suffix=".jpg"),
        "mkv": rich(folder / "png.mkv"),
        "mov": rich(folder / "timecode.mov", timecode="01:00:00:00"),
    }


def contents(path):
    """What a file holds, as people would list it."""
    with av.open(str(path)) as container:
        covers = [s for s in container.streams.video if s.disposition & Disposition.attached_pic]
        kinds = sorted((s.type, s.name) for s in container.streams if s not in covers and s.type != "data")
        files = {s.name: s.data for s in container.streams if s.type == "attachment"}
        titles = [chapter["metadata"]["title"] for chapter in container.chapters()]
        return kinds, len(covers), files, titles


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


def starts(path):
    """When each stream's packets are due, counted from the first picture, in seconds."""
    found = tracks(path)
    zero = found["video", 0][0][1]
    return {key: [pts - zero for _, pts, data in track if len(data) > 2] for key, track in found.items()
            if key[0] in ("video", "audio", "subtitle")}  # fmt: skip


def chapter_starts(path):
    with av.open(str(path)) as container:
        return [float(chapter["start"] * chapter["time_base"]) for chapter in container.chapters()]


def check_playable(path):
    """No player has to guess: decoding times rise in each stream, and nothing is shown before it is decoded."""
    for (kind, _), track in tracks(path).items():
        decoding = [dts for dts, _, _ in track if dts is not None]
        assert all(b > a for a, b in itertools.pairwise(decoding)), kind
        assert all(pts >= dts for dts, pts, _ in track if None not in (dts, pts)), kind


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("kind", ["mp4", "jpg.mp4", "mkv"])
def test_everything_comes_along(films, tmp_path, kind, delay):
    source, target = films[kind], tmp_path / f"out{films[kind].suffix}"
    assert shift_audio(source, target, delay) == []
    assert contents(target) == contents(source)
    kinds, covers, files, titles = contents(target)
    assert len(kinds) == (5 if kind == "mkv" else 4) and covers == 1
    assert files == ({"notes.txt": FILE} if kind == "mkv" else {}) and titles == [title for _, title in CHAPTERS]
    before, after = tracks(source), tracks(target)
    for key in before:
        if key[0] not in ("data", "attachment"):  # chapters are data in MP4
            assert [p for *_, p in after[key] if len(p) > 2] == [p for *_, p in before[key] if len(p) > 2]
    wanted, found = starts(source), starts(target)
    for key, times in wanted.items():
        moved = delay if key[0] == "audio" else 0
        assert found[key] == pytest.approx([time + moved for time in times], abs=0.002), key
    zero = tracks(target)["video", 0][0][1] - tracks(source)["video", 0][0][1]
    assert chapter_starts(target) == pytest.approx([start + zero for start, _ in CHAPTERS], abs=0.002)
    check_playable(target)


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("kind", ["mp4", "mkv"])
@pytest.mark.parametrize("target", ["out.mp4", "out.mkv", "out.mov", "out.ts", "out.flv"])
def test_pictures_out_of_order_keep_their_times(films, tmp_path, kind, target, delay):
    source, target = films[kind], tmp_path / target
    assert not any("encoded" in note for note in shift_audio(source, target, delay))
    check_playable(target)
    wanted, found = starts(source), starts(target)
    assert found["video", 0] == pytest.approx(wanted["video", 0], abs=0.002)
    for key in (("audio", 0), ("audio", 1)):
        assert found[key][0] == pytest.approx(wanted[key][0] + delay, abs=0.002)


def test_covers_of_mp4_are_covers_in_matroska(films, tmp_path):
    for kind, suffix in (("mp4", ".png"), ("jpg.mp4", ".jpg")):
        notes = shift_audio(films[kind], tmp_path / "out.mkv", 0.16)
        assert len(notes) == 1 and "subtitle" in notes[0] and "mov_text" in notes[0]
        after = tracks(tmp_path / "out.mkv")
        assert [data for *_, data in after["cover", 0]] == [cover(suffix)]
        assert ("video", 1) not in after  # a cover is no film


def test_only_what_is_refused_is_left_out_and_each_is_named(films, tmp_path):
    notes = shift_audio(films["mkv"], tmp_path / "out.mp4", 0.16)
    assert len(notes) == 2
    assert "subtitle" in notes[0] and "notes.txt" in notes[1] and all("left out" in note for note in notes)
    kinds, covers, _, titles = contents(tmp_path / "out.mp4")
    assert [kind for kind, _ in kinds] == ["audio", "audio", "video"] and covers == 1 and titles == ["One", "Two"]
    notes = shift_audio(films["mp4"], tmp_path / "out.mov", 0.16)
    assert len(notes) == 1 and "cover" in notes[0]
    kinds, _, _, titles = contents(tmp_path / "out.mov")
    assert [kind for kind, _ in kinds] == ["audio", "audio", "subtitle", "video"] and titles == ["One", "Two"]
    assert [data[2:] for *_, data in tracks(tmp_path / "out.mov")["subtitle", 0] if len(data) > 2] == [
        text for _, text in TEXTS
    ]


def test_what_would_become_unreadable_is_left_out_and_named(films, tmp_path):
    for kind, gone in (
        ("mkv", ["subtitle", "cover", "notes.txt", "chapters"]),
        ("mp4", ["subtitle", "cover", "chap"]),
    ):
        notes = shift_audio(films[kind], tmp_path / "out.ts", 0.16)
        assert len(notes) == len(gone) and all(any(word in note for note in notes) for word in gone)
        assert {kind for kind, _ in tracks(tmp_path / "out.ts")} == {"video", "audio"}


def test_timecode_is_kept_or_named(films, tmp_path):
    def timecodes(path):
        with av.open(str(path)) as container:
            return [
                s.metadata["timecode"] for s in container.streams if s.type == "data" and "timecode" in s.metadata
            ]

    assert timecodes(films["mov"]) == ["01:00:00:00"]
    assert shift_audio(films["mov"], tmp_path / "out.mov", 0.16) == []
    assert timecodes(tmp_path / "out.mov") == ["01:00:00:00"]
    assert sum("timecode" in note for note in shift_audio(films["mov"], tmp_path / "out.mkv", 0.16)) == 1


@pytest.mark.parametrize("suffix", ["avi", "wmv", "mpg", "webm", "ogv"])
def test_encoded_streams_are_fine_and_on_time(films, tmp_path, suffix):
    """Each of these containers refuses or garbles something: codecs, start times, pictures out of order."""
    source, target = films["mp4"], tmp_path / f"out.{suffix}"
    for delay in DELAYS:
        notes = shift_audio(source, target, delay)
        assert any(note.startswith("the video was encoded anew") for note in notes)
        frames, sound = read(target)
        assert len(frames) == len(pictures())
        assert lag_seconds(sound, open_video(source).waveform()) == pytest.approx(delay, abs=0.005)
        loss = np.mean((frames.astype(float) - read(source)[0]) ** 2)
        assert 10 * np.log10(255**2 / loss) > 38
        assert sum(kind == "audio" for kind, _ in tracks(target)) == 2
        check_playable(target)


def test_only_the_refused_stream_is_encoded(tmp_path):
    """MPEG-TS takes this video, but not this sound."""
    source = mux(tmp_path / "a.mkv", numbered(50), np.arange(50) / 25, noise(2.0), audio_codec="flac")
    notes = shift_audio(source, tmp_path / "out.ts", 0.16)
    assert len(notes) == 1 and notes[0].startswith("the audio was encoded anew")
    before, after = tracks(source)["video", 0], tracks(tmp_path / "out.ts")["video", 0]
    assert len(after) == len(before)
    assert lag_seconds(open_video(tmp_path / "out.ts").waveform(), noise(2.0)) == pytest.approx(0.16, abs=0.003)


def test_a_codec_without_encoder_of_its_name_is_copied(tmp_path):
    """AV1 is decoded by one library and encoded by others."""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        video = container.add_stream("libsvtav1", rate=25, options={"preset": "12"})
        video.height, video.width, video.pix_fmt = 64, 64, "yuv420p"
        sound = container.add_stream("aac", rate=16_000, layout="mono")
        for picture in numbered(10, 64, 64):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        frame = av.AudioFrame.from_ndarray(
            noise(0.4)[None].astype(np.float32) / 32768, format="fltp", layout="mono"
        )
        frame.sample_rate = 16_000
        container.mux(sound.encode(frame))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    assert shift_audio(tmp_path / "a.mp4", tmp_path / "out.mkv", 0.16) == []


def test_encoded_sound_keeps_its_holes(tmp_path):
    whole = mux(tmp_path / "whole.mkv", numbered(75), np.arange(75) / 25, noise(3.0))
    with av.open(str(whole)) as reader, av.open(str(tmp_path / "hole.mkv"), "w") as writer:
        copies = {s.index: writer.add_stream_from_template(s) for s in reader.streams}
        for p in reader.demux():
            if p.size and (p.stream.type == "video" or not 1 < p.pts * p.time_base < 2):
                p.stream = copies[p.stream.index]
                writer.mux(p)
    shift_audio(tmp_path / "hole.mkv", tmp_path / "out.avi", 0.16)
    sound = open_video(tmp_path / "out.avi").waveform()
    behind = slice(36_000, 46_000)
    assert lag_seconds(sound[behind], noise(3.0)[behind]) == pytest.approx(0.16, abs=0.005)
