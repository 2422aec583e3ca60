"""Which stretches of a long film are looked at, when that ends, and that an edit is found between them."""

import itertools
import re

import numpy as np
import pytest

from mtd_jax.data.clip import FPS
from mtd_jax.faces.boxes import FaceBox
from mtd_jax.scoring import Scan, Scorer
from mtd_jax.sync import sample
from mtd_jax.sync.detect import detect_offset
from mtd_jax.video.decode import open_video
from tests.helpers.configs import STUDENT
from tests.helpers.videos import mux, noise, numbered

MINUTES = 4


def test_places_are_even_at_every_level():
    places = list(itertools.islice(sample.van_der_corput(), 17))
    assert places[:5] == [0, 1, 0.5, 0.25, 0.75]
    for count in (3, 5, 9, 17):
        assert sorted(places[:count]) == pytest.approx(np.linspace(0, 1, count))


def test_stretches_cover_a_film_evenly_and_stay_within():
    found = list(sample.stretches(10 * 60 * FPS))
    assert len(found) == sample.MOST and len(set(found)) == len(found)
    assert all(start % 5 == 0 and 0 <= start < end <= 10 * 60 * FPS for start, end in found)
    first = sorted(found[: sample.FIRST])
    gaps = [b[0] - a[1] for a, b in itertools.pairwise(first)]
    assert max(gaps) <= 10 * 60 * FPS / (sample.FIRST - 1) and max(gaps) - min(gaps) <= 10
    assert list(sample.stretches(sample.WHOLE)) == [(0, sample.WHOLE)]


def test_a_gap_is_halved_until_the_edit_is_located():
    left, right, looks = 1000, 9000, 0
    edit = 4321
    while (gap := sample.between(left, right)) is not None:
        start, end = gap
        assert left <= start < end <= right
        left, right = (end, right) if end <= edit else (left, start) if start >= edit else (start, end)
        looks += 1
    assert left <= edit <= right and right - left <= sample.LOCATED and looks < 12


class FakeScorer(Scorer):
    """Scores by what the frames show: the offset is a function of the time."""

    def __init__(self, offset_at):
        self.config, self.offset_at, self.frames = STUDENT, offset_at, 0

    def scan(self, frames, samples, *, max_shift, every):
        count = (len(frames) - self.config.window_frames) // every + 1
        self.frames += len(frames)
        times = np.abs(samples[400:].astype(int)).max()  # the sound says where in the film it is
        rng = np.random.default_rng(len(samples))
        table = rng.normal(size=(count, 2 * max_shift + 1))
        table[:, max_shift - self.offset_at(times)] += 4
        return Scan(table, np.zeros((count, 5, 8), np.float32))

    def compare_columns(self, video, samples):
        return np.tile(-np.square(np.arange(13) - 6.5), (len(video), 1))


@pytest.fixture(scope="module")
def long_film(tmp_path_factory):
    """Four minutes whose sound grows louder, at 5 frames a second."""
    path = tmp_path_factory.mktemp("long") / "a.mkv"
    times = np.arange(MINUTES * 60 * 5) / 5
    seconds = np.arange(MINUTES * 60 * 16_000) / 16_000
    sound = (np.sign(noise(MINUTES * 60)) * (1000 + 100 * seconds)).astype(np.int16)
    return mux(
        path, np.tile(numbered(200, 32, 64), (len(times) // 200, 1, 1, 1)), times, sound, audio_codec="pcm_s16le"
    )


def second(loudness):
    return (loudness - 1000) / 100


def measure(path, offset_at, **options):
    scorer = FakeScorer(offset_at)
    return scorer, detect_offset(scorer, path, faces="whole", **options)


def test_a_constant_offset_takes_a_few_stretches(long_film):
    scorer, found = measure(long_film, lambda loudness: 7)
    assert (found.verdict, found.offset_frames) == ("out_of_sync", 7)
    assert scorer.frames <= sample.FIRST * sample.STRETCH < MINUTES * 60 * FPS / 4
    assert found.sampled == pytest.approx(sample.FIRST * sample.STRETCH / (MINUTES * 60 * FPS), rel=0.01)
    # The made-up peak is half a column late, which is 6 ms less early.
    assert found.offset_seconds == pytest.approx(0.28 - 0.5 * 0.0125, abs=1e-4)
    assert found.offset_error_seconds == pytest.approx(0, abs=1e-6)


class TwoPeaks(FakeScorer):
    """The best offset within ±15 frames is `inside`, and a higher score is at `outside`, beyond them."""

    def __init__(self, inside, outside, level=4.0):
        super().__init__(lambda loudness: inside)
        self.outside, self.level = outside, level

    def scan(self, frames, samples, *, max_shift, every):
        table, tokens = super().scan(frames, samples, max_shift=max_shift, every=every)
        if abs(self.outside) <= max_shift:
            table[:, max_shift - self.outside] += 12
        return Scan(table + self.level - 4, tokens)


@pytest.mark.parametrize(
    "inside, level, verdict, said",
    [
        (-3, 4.0, "out_of_sync", None),  # the model takes it for in sync: no second look
        (-14, 4.0, "unknown", "use --max_shift=55"),  # near the edge of the range
        (-3, -4.0, "unknown", "use --max_shift=55"),  # it takes even the best for out of sync
    ],
)
def test_a_suspect_offset_is_compared_with_those_beyond_the_range(long_film, inside, level, verdict, said):
    found = detect_offset(TwoPeaks(inside, -40, level), long_film, faces="whole")
    assert (found.verdict, found.confidence >= 0.9) == (verdict, verdict == "out_of_sync")
    assert found.offset_frames == (inside if verdict == "out_of_sync" else -40)
    assert said is None or any(said in line for line in found.warnings)
    there = detect_offset(TwoPeaks(inside, inside, level), long_film, faces="whole")
    assert (there.verdict, there.offset_frames) == ("out_of_sync", inside)  # nothing better is beyond


def test_an_edit_is_located_to_two_seconds(long_film):
    edit = 101.0
    _, found = measure(long_film, lambda loud: -3 if second(loud) < edit else 6)
    assert found.verdict == "drifting"
    ((start, end, before, after),) = found.course.jumps
    assert (before, after) == (-3, 6)
    assert start - 1 <= edit <= end + 4 and end - start <= 6  # a stretch is told apart by its loudest moment
    assert any("an edit" in line for line in found.warnings)


def test_all_of_a_film_is_looked_at_if_asked(long_film):
    scorer, found = measure(long_film, lambda loudness: 2, thorough=True)
    assert found.sampled == 1 and scorer.frames >= MINUTES * 60 * FPS - 10


def test_boxes_tell_where_to_look(long_film):
    face = FaceBox((0, 0, 64, 32), 100.0, 106.0)
    found = detect_offset(FakeScorer(lambda loudness: 4), long_film, faces=[face])
    assert (found.offset_frames, found.sampled) == (4, 1.0)
    assert [(track.start_seconds, track.end_seconds) for track in found.tracks] == [(100.0, 106.0)]


def test_a_truncated_film_says_where_it_ends(long_film, tmp_path):
    data = long_film.read_bytes()
    (tmp_path / "half.mkv").write_bytes(data[: len(data) // 2])
    whole, half = (measure(path, lambda loudness: 7)[1] for path in (long_film, tmp_path / "half.mkv"))
    # As many stretches as of any film, spread over what there is.
    assert half.offset_frames == 7 and half.sampled == pytest.approx(2 * whole.sampled, rel=0.1)
    assert not any("ends at" in line for line in whole.warnings)
    (line,) = (line for line in half.warnings if "ends at" in line)
    assert 110 < int(re.search(r"ends at (\d+) s, before the file does at 240 s", line)[1]) < 125


def test_the_length_of_a_film_is_that_of_its_video(long_film, tmp_path):
    """Half a minute of video below four minutes of audio is looked at whole."""
    times = np.arange(30 * 5) / 5
    pictures = np.tile(numbered(150, 32, 64), (1, 1, 1, 1))
    path = mux(tmp_path / "a.mkv", pictures, times, noise(240), audio_codec="pcm_s16le")
    scorer, found = measure(path, lambda loudness: 7)
    assert found.sampled == 1 and found.offset_frames == 7 and scorer.frames >= 30 * FPS - 10
    assert "video: ends at 30 s, before the file does at 240 s" in found.warnings


@pytest.mark.parametrize("suffix, codec, sound", [("mp4", "libx264", "aac"), ("mkv", "libx264", "aac"),
                                                  ("ts", "libx264", "aac"), ("mov", "mjpeg", "alac"),
                                                  ("webm", "libvpx", "libopus")])  # fmt: skip
def test_a_part_has_the_frames_of_the_whole(tmp_path, suffix, codec, sound):
    rate = 48_000 if sound == "libopus" else 16_000
    times = np.arange(400) / 25
    frames = np.tile(numbered(200), (2, 1, 1, 1))
    path = mux(tmp_path / f"a.{suffix}", frames, times, noise(16, rate), rate=rate, video_codec=codec,
               audio_codec=sound)  # fmt: skip
    video = open_video(path)
    whole = dict(video.frames())
    for first, end in ((0, 30), (100, 160), (255, 300), (len(whole) - 20, len(whole) + 50)):
        part = {k: picture.rgb() for k, picture in video.pictures(None, first, end)}
        assert list(part) == list(range(first, min(end, len(whole))))
        assert all((part[k] == whole[k]).all() for k in part)
    assert list(video.pictures(None, len(whole) + 100, len(whole) + 150)) == []


def test_a_container_that_counts_frames_is_read_whole(tmp_path):
    times = np.arange(100) / 25
    path = mux(tmp_path / "a.avi", numbered(100), times, noise(4), video_codec="mjpeg", audio_codec="pcm_s16le")
    assert not open_video(path).can_seek
