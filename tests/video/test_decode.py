"""Decoding: every grid frame is the right picture, and the sound is where the clock says."""

import os
import re
import struct

import av
import numpy as np
import pytest

from mtd_jax.errors import UserError
from mtd_jax.video.decode import open_video, read
from tests.helpers.videos import RATE, damage, lag_seconds, mux, noise, number_of, numbered, rotate_mp4, set_matrix


def nearest(times, count, origin=0.0):
    """Which picture belongs to each grid frame: the nearest, never one that is 20 ms or more ahead."""
    times = np.asarray(times)
    chosen = []
    for due in origin + np.arange(count) / 25:
        distance = np.abs(times - due)
        distance[times - due > 0.02 - 1e-6] = np.inf
        chosen.append(int(np.argmin(distance)))
    return chosen


@pytest.mark.parametrize(("fps", "suffix"), [(24000 / 1001, "mp4"), (25, "mkv"), (30000 / 1001, "mkv"),
                                             (30, "mp4"), (50, "ts"), (60, "webm"), (10, "mov")])  # fmt: skip
def test_frames_are_chosen_by_time(tmp_path, fps, suffix):
    times = np.arange(round(3 * fps)) / fps
    codecs = {"webm": ("libvpx", "libopus", 48_000), "mov": ("mjpeg", "alac", 16_000)}
    video, audio, rate = codecs.get(suffix, ("libx264", "aac", 16_000))
    path = mux(tmp_path / f"a.{suffix}", numbered(len(times)), times, noise(3.2, rate), rate=rate,
               video_codec=video, audio_codec=audio)  # fmt: skip
    frames, waveform = read(path)
    assert [number_of(f) for f in frames] == nearest(times, 75)
    assert len(waveform) == 75 * 640
    assert abs(lag_seconds(waveform, noise(3.2))) < 0.002


def test_variable_rate_and_a_long_still(tmp_path):
    times = np.cumsum([0, 0.03, 0.05, 0.02, 1.0, 0.041, 0.037, 0.04, 0.3, 0.01, 0.02, 0.1])
    path = mux(tmp_path / "a.mkv", numbered(len(times)), times, noise(2), rate=RATE)
    frames, _ = read(path)
    count = len(frames)
    assert abs(count - times[-1] * 25) <= 3
    assert [number_of(f) for f in frames] == nearest(np.round(times, 3), count)


@pytest.mark.parametrize(
    ("rate", "layout"), [(48_000, "stereo"), (44_100, "mono"), (8_000, "mono"), (48_000, "5.1")]
)
def test_any_sound_becomes_16_khz_mono_on_time(tmp_path, rate, layout):
    path = mux(tmp_path / "a.mp4", numbered(50), np.arange(50) / 25, noise(2, rate), rate=rate, layout=layout)
    waveform = open_video(path).waveform()
    assert waveform.dtype == np.int16 and waveform.ndim == 1
    assert abs(lag_seconds(waveform, noise(2))) < 0.001
    error = waveform[1600:30_400].astype(float) - noise(2)[1600:30_400]
    assert np.corrcoef(waveform[1600:30_400], noise(2)[1600:30_400])[0, 1] > 0.95, error.std()


@pytest.mark.parametrize(("video_start", "sound_start"), [(0.2, 0.0), (0.0, 0.36), (1.0, 1.2)])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_start_times_are_honoured(tmp_path, suffix, video_start, sound_start):
    times = video_start + np.arange(75) / 25
    path = mux(tmp_path / f"a.{suffix}", numbered(75), times, noise(3), sound_start=sound_start)
    video = open_video(path)
    frames, waveform = [f for _, f in video.frames()], video.waveform()
    assert [number_of(f) for f in frames] == list(range(75))
    assert abs(lag_seconds(waveform, noise(3)) - (sound_start - video_start)) < 0.002
    assert abs(video.start_seconds - max(video_start - sound_start, 0)) < 0.07  # an AAC frame of priming in .ts
    late = round((sound_start - video_start) * RATE)
    assert late <= 0 or np.abs(waveform[: late - 1100]).max() < 50


def test_a_hole_in_the_sound_is_silence(tmp_path):
    whole = noise(4)
    first = mux(tmp_path / "first.mkv", numbered(100), np.arange(100) / 25, whole)
    path = tmp_path / "hole.mkv"
    remux(first, path, lambda p: p.stream.type == "video" or not 1.5 < p.pts * p.time_base < 2.5)
    waveform = open_video(path).waveform()
    assert np.abs(waveform[round(1.7 * RATE) : round(2.4 * RATE)]).max() == 0
    for part in (slice(0, round(1.4 * RATE)), slice(round(2.7 * RATE), 4 * RATE)):
        assert abs(lag_seconds(waveform[part], whole[part])) < 0.002


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_is_applied(tmp_path, rotation):
    pictures = np.zeros((10, 48, 80, 3), np.uint8)
    pictures[:, :16, :16] = 255  # top left as stored
    path = rotate_mp4(mux(tmp_path / "a.mp4", pictures, np.arange(10) / 25, noise(0.4)), rotation)
    frames, _ = read(path)
    expected = np.rot90(pictures[0], rotation // 90)
    assert frames.shape[1:] == expected.shape
    assert np.abs(frames[5].astype(int) - expected).mean() < 8
    video = open_video(path)
    assert (video.height, video.width) == expected.shape[:2]


@pytest.mark.parametrize(
    "matrix, shown",
    [
        ((-1, 0, 0, 1), lambda picture: picture[:, ::-1]),
        ((1, 0, 0, -1), lambda picture: picture[::-1]),
        ((0, 1, 1, 0), lambda picture: picture.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda picture: picture[::-1, ::-1].swapaxes(0, 1)),
    ],
)
def test_a_mirrored_video_is_shown_mirrored(tmp_path, matrix, shown):
    pictures = np.zeros((10, 48, 80, 3), np.uint8)
    pictures[:, :16, :16] = 255
    pictures[:, :16, 64:] = (255, 0, 0)
    path = set_matrix(mux(tmp_path / "a.mp4", pictures, np.arange(10) / 25, noise(0.4)), matrix)
    frames, _ = read(path)
    expected = shown(pictures[0])
    assert frames.shape[1:] == expected.shape
    assert np.abs(frames[5].astype(int) - expected).mean() < 12


def test_joined_recordings_are_measured_to_the_seam_and_a_note_says_so(tmp_path):
    part = mux(tmp_path / "a.ts", numbered(50), np.arange(50) / 25, noise(2.0)).read_bytes()
    (tmp_path / "joined.ts").write_bytes(part + part)
    video = open_video(tmp_path / "joined.ts")
    frames = [number_of(pixels) for _, pixels in video.frames()]
    # The last frame may go, too: a demuxer gives a .ts packet away only once it has seen the next one.
    assert frames in (list(range(49)), list(range(50))) and abs(len(video.waveform()) - 32_000) < 3_000
    for kind in ("video", "audio"):
        assert (
            sum(bool(re.match(f"{kind}: the clock goes back at (1.9|2.0) s", line)) for line in video.warnings)
            == 1
        )


def tracks(path, sounds, layout="stereo"):
    """Ten pictures and a track of lossless audio for each (channels, samples) of `sounds`."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        streams = [container.add_stream("pcm_s16le", rate=RATE, layout=layout) for _ in sounds]
        for stream, language in zip(streams, ("eng", "fre"), strict=False):
            stream.metadata["language"] = language
        for picture in numbered(50):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        for stream, sound in zip(streams, sounds, strict=True):
            packed = np.ascontiguousarray(sound.T.reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
            frame.sample_rate = RATE
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def test_channels_of_opposite_phase_do_not_cancel_out(tmp_path):
    sound = noise(2.0)
    video = open_video(tracks(tmp_path / "a.mkv", [np.stack([sound, -sound])]))
    waveform = video.waveform()
    assert np.corrcoef(waveform[:30_000], sound[:30_000])[0, 1] > 0.99
    assert any("opposite phase" in line for line in video.warnings)


def test_a_silent_first_track_is_passed_over_unless_it_is_chosen(tmp_path):
    sound = np.stack([noise(2.0)] * 2)
    path = tracks(tmp_path / "a.mkv", [sound * 0, sound])
    video = open_video(path)
    assert np.abs(video.waveform()).max() > 1000 and video.audio_track == 2
    assert any("track 1 is silent; track 2 was taken" in line for line in video.warnings)
    chosen = open_video(path, "1")
    assert not chosen.waveform().any() and chosen.audio_track == 1


@pytest.mark.parametrize("track, number", [("1", 1), ("2", 2), ("fre", 2), ("ENG", 1)])
def test_a_track_is_chosen_by_number_or_language(tmp_path, track, number):
    sounds = [np.stack([noise(2.0, seed=seed)] * 2) for seed in (0, 1)]
    video = open_video(tracks(tmp_path / "a.mkv", sounds), track)
    assert video.audio_track == number
    assert np.corrcoef(video.waveform()[:30_000], sounds[number - 1][0][:30_000])[0, 1] > 0.99


def test_a_track_that_is_not_there_is_an_error_that_lists_them(tmp_path):
    path = tracks(tmp_path / "a.mkv", [np.stack([noise(1.0)] * 2)] * 2)
    for wrong in ("3", "0", "ger"):
        with pytest.raises(UserError, match=rf"no audio stream '{wrong}'; it has 1 \(eng\), 2 \(fre\)"):
            open_video(path, wrong)


@pytest.mark.parametrize(("height", "width"), [(35, 47), (48, 33), (37, 64)])
def test_odd_sizes(tmp_path, height, width):
    path = mux(tmp_path / "a.mkv", numbered(6, height, width), np.arange(6) / 25, noise(0.3))
    frames, waveform = read(path)
    assert frames.shape == (6, height, width, 3) and len(waveform) == 6 * 640
    assert [number_of(f) for f in frames] == list(range(6))


def test_sound_is_cut_at_the_last_picture_but_not_padded(tmp_path):
    times = np.arange(50) / 25
    frames, waveform = read(mux(tmp_path / "long.mp4", numbered(50), times, noise(5)))
    assert (len(frames), len(waveform)) == (50, 50 * 640)
    frames, waveform = read(mux(tmp_path / "short.mp4", numbered(50), times, noise(1)))
    assert len(frames) == 50 and RATE <= len(waveform) < 1.2 * RATE


def test_cut_off_file_gives_what_is_left_and_says_so(tmp_path):
    path = mux(tmp_path / "a.mkv", numbered(250), np.arange(250) / 25, noise(10))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    video = open_video(path)
    frames = [number_of(f) for _, f in video.frames()]
    assert 60 < len(frames) < 220
    assert frames[:50] == list(range(50))
    assert any("ends at" in line and "of 10." in line for line in video.warnings)


def test_damaged_packets_are_counted_and_time_goes_on(tmp_path):
    path = mux(tmp_path / "a.mp4", numbered(150), np.arange(150) / 25, noise(6), video_codec="mjpeg")
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size][40:60]
    data = bytearray(path.read_bytes())
    for position, size in places:
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    video = open_video(path)
    frames = [number_of(f) for _, f in video.frames()]
    assert frames[:40] == list(range(40)) and frames[60:] == list(range(60, 150))
    assert video.warnings == ["video: 20 damaged packets were skipped"]


def remux(source, target, change):
    """Copies the packets; `change` may move a packet's time stamps, or leave it out by returning False."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        streams = {stream.index: writer.add_stream_from_template(stream) for stream in reader.streams}
        for packet in reader.demux():
            if not packet.size:
                continue
            if packet.dts is None:
                packet.dts = packet.pts
            if change(packet) is False:
                continue
            packet.stream = streams[packet.stream.index]
            writer.mux(packet)
    return target


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_a_leap_of_the_time_stamps_ends_a_stream_with_a_warning(tmp_path, kind):
    def leap(packet):
        if packet.stream.type == kind and packet.pts * packet.time_base > 2:
            packet.pts += round(5000 / packet.time_base)
            packet.dts += round(5000 / packet.time_base)

    whole = mux(tmp_path / "whole.mkv", numbered(100), np.arange(100) / 25, noise(4))
    video = open_video(remux(whole, tmp_path / "leap.mkv", leap))
    frames, waveform = [number_of(f) for _, f in video.frames()], video.waveform()
    assert any("jump" in line for line in video.warnings)
    if kind == "video":
        assert frames == list(range(len(frames))) and 48 <= len(frames) <= 53
    else:
        assert len(frames) == 100 and 2 * RATE <= len(waveform) < 2.2 * RATE


@pytest.mark.parametrize("claim", [0.9, 30, 2_000_000])
def test_the_last_picture_is_not_held_for_whatever_the_file_claims(tmp_path, claim):
    def last_longer(packet):
        if packet.stream.type == "video" and packet.pts * packet.time_base > 1.95:
            packet.duration = round(claim / packet.time_base)

    whole = mux(tmp_path / "whole.mkv", numbered(50), np.arange(50) / 25, noise(2))
    video = open_video(remux(whole, tmp_path / "long.mkv", last_longer))
    frames = [number_of(f) for _, f in video.frames()]
    if claim < 1:
        assert frames == list(range(49)) + [49] * 22 or frames == list(range(49)) + [49] * 23
        assert video.warnings == []
    else:
        assert frames == list(range(50))
        (warning,) = video.warnings
        assert f"declares a duration of {claim}.0 s" in warning


def test_slides_are_held_and_the_last_one_as_long_as_the_others(tmp_path):
    times = np.array([0, 5, 10, 15])
    path = mux(tmp_path / "a.mkv", numbered(4), times, noise(20))

    def last_longer(packet):
        if packet.stream.type == "video" and packet.pts * packet.time_base > 14:
            packet.duration = round(60 / packet.time_base)

    video = open_video(remux(path, tmp_path / "long.mkv", last_longer))
    frames = [number_of(f) for _, f in video.frames()]
    assert frames == nearest([0, 5, 10, 15], 500)
    assert len(video.warnings) == 1 and "5.00 s was used" in video.warnings[0]


def test_a_gap_beyond_what_the_file_declares_is_a_leap(tmp_path):
    def leap(packet):
        if packet.stream.type == "video" and packet.pts * packet.time_base > 2:
            packet.pts += round(400 / packet.time_base)
            packet.dts += round(400 / packet.time_base)

    whole = mux(tmp_path / "whole.mkv", numbered(100), np.arange(100) / 25, noise(4))
    path = remux(whole, tmp_path / "gap.mkv", leap)
    assert open_video(path).count_frames() == 100 + 400 * 25
    data = path.read_bytes()
    place = data.index(b"\x44\x89\x88") + 3  # Duration, a double in milliseconds
    assert struct.unpack(">d", data[place : place + 8])[0] > 400_000
    path.write_bytes(data[:place] + struct.pack(">d", 4000.0) + data[place + 8 :])
    video = open_video(path)
    assert 48 <= video.count_frames() <= 53 and any("jump" in line for line in video.warnings)


@pytest.mark.parametrize("suffix", ["mkv", "webm", "ts", "mp4", "mov", "flv"])
def test_no_file_that_starts_late_is_taken_for_a_cut_off_one(tmp_path, suffix):
    def later(packet):
        packet.pts += round(5000 / packet.time_base)
        packet.dts += round(5000 / packet.time_base)

    codecs = {"webm": ("libvpx", "libopus", 48_000)}
    video, audio, rate = codecs.get(suffix, ("libx264", "aac", 16_000))
    whole = mux(tmp_path / f"whole.{suffix}", numbered(100), np.arange(100) / 25, noise(4, rate), rate=rate,
                video_codec=video, audio_codec=audio)  # fmt: skip
    video = open_video(remux(whole, tmp_path / f"late.{suffix}", later))
    assert video.count_frames() == 100 and len(video.waveform()) >= 4 * RATE - 2000 and video.warnings == []


def test_what_the_decoder_made_up_is_counted(tmp_path):
    video = open_video(damage(mux(tmp_path / "a.mp4", numbered(150), np.arange(150) / 25, noise(6))))
    assert video.count_frames() == 150
    assert any("frames are damaged" in line for line in video.warnings)


def test_pictures_that_change_size_midway_keep_the_first_size(tmp_path):
    numbers, times, sound = numbered(50, 48, 64), np.arange(50) / 25, noise(2)
    first = mux(tmp_path / "first.ts", numbers[:25], times[:25], sound[:16_000])
    larger = np.repeat(np.repeat(numbers[25:], 2, axis=1), 2, axis=2)
    second = mux(tmp_path / "second.ts", larger, times[25:], sound[16_000:], sound_start=1.0)
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    frames, _ = read(path)
    assert frames.shape[1:] == (48, 64, 3)
    seen = [number_of(f) for f in frames]  # the second file's clock is off by its encoder's delay
    assert seen[:25] == list(range(25)) and seen[28:] == list(range(50 - len(seen[28:]), 50)) and len(seen) >= 47


def test_progress_is_told(tmp_path):
    path = mux(tmp_path / "a.mp4", numbered(100), np.arange(100) / 25, noise(4))
    told = []
    list(open_video(path).frames(lambda done, total: told.append((done, total))))
    assert [done for done, _ in told] == [0, 1, 2, 3]
    assert all(abs(total - 4) < 0.1 for _, total in told)


def write(name, data):
    return lambda folder: (folder / name).write_bytes(data) and folder / name


def cut_mp4(folder):
    path = mux(folder / "a.mp4", numbered(50), np.arange(50) / 25, noise(2))
    path.write_bytes(path.read_bytes()[:5000])
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing.mp4", "no such file"),
        (lambda folder: folder, "is a folder"),
        (lambda folder: os.mkfifo(folder / "a.mp4") or folder / "a.mp4", "is a pipe"),
        (lambda folder: (folder / "a.mp4").symlink_to("nowhere") or folder / "a.mp4", "a link to nowhere"),
        (lambda folder: (folder / "a.mp4").touch() or folder / "a.mp4", "empty"),
        (write("a.mp4", b"no video at all " * 50), "not a video"),
        (cut_mp4, "cut short"),
        (lambda folder: mux(folder / "a.mp4", numbered(9), np.arange(9) / 25, None), "no audio stream"),
        (lambda folder: mux(folder / "a.m4a", None, None, noise(1)), "no video stream"),
    ],
)
def test_faults_are_one_clear_line(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_urls_are_named_as_such():
    with pytest.raises(UserError, match="http:/.*is a URL; download"):
        open_video("http://example.org/a.mp4")


def test_the_choice_among_streams_is_told(tmp_path):
    once = mux(tmp_path / "a.mkv", numbered(25), np.arange(25) / 25, noise(1.0))
    twice = tmp_path / "b.mkv"
    with av.open(str(once)) as source, av.open(str(twice), "w") as target:
        copies = [target.add_stream_from_template(source.streams[k]) for k in (0, 1, 1)]
        for packet in source.demux(source.streams[0], source.streams[1]):
            if packet.dts is not None:
                data, index = bytes(packet), packet.stream.index
                for copy in copies[index : index + 1] if index == 0 else copies[1:]:
                    again = av.Packet(data)
                    again.pts, again.dts, again.time_base = packet.pts, packet.dts, packet.time_base
                    again.duration, again.is_keyframe, again.stream = packet.duration, packet.is_keyframe, copy
                    target.mux(again)
    assert open_video(once).warnings == []
    assert open_video(twice).warnings == ["2 audio streams; measuring number 1"]


def test_no_frame_of_an_avi_with_b_frames_is_lost(tmp_path):
    """AVI stores no presentation times. FFmpeg's own copy of it shows what is right."""
    import subprocess

    from mtd_jax.sync.ffmpeg import find_ffmpeg

    source = mux(tmp_path / "a.mp4", numbered(100), np.arange(100) / 25, noise(4.0))
    ffmpeg = [find_ffmpeg(), "-v", "error", "-y", "-i"]
    encode = ["-c:v", "libx264", "-bf", "3", "-crf", "10", "-c:a", "pcm_s16le"]
    subprocess.run([*ffmpeg, str(source), *encode, str(tmp_path / "b.avi")], check=True)
    subprocess.run([*ffmpeg, str(tmp_path / "b.avi"), *encode, str(tmp_path / "c.mkv")], check=True)
    (ours, our_sound), (theirs, their_sound) = read(tmp_path / "b.avi"), read(tmp_path / "c.mkv")
    ours, theirs = [number_of(frame) for frame in ours], [number_of(frame) for frame in theirs]
    assert len(set(ours)) >= 98
    shift = round(25 * lag_seconds(our_sound, their_sound))  # the first frame is frame 0 in both
    assert abs(shift) <= 1 and ours[10:80] == theirs[10 - shift : 80 - shift]
