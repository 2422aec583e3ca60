"""From a video file to the clips of its faces."""

import dataclasses
import re
import weakref

import numpy as np
import pytest

from mtd_jax.data.folder import lower_face
from mtd_jax.errors import UserError
from mtd_jax.faces.boxes import WHOLE_FRAME, FaceBox
from mtd_jax.faces.clips import FaceSpool, FaceView, crop_tracks, face_clips, no_face
from mtd_jax.faces.detect import load_detector
from mtd_jax.faces.search import FindSettings, find_faces
from mtd_jax.faces.tracks import LinkSettings, iou
from mtd_jax.synthetic.clips import portrait, record
from mtd_jax.video.decode import Picture, open_video, read
from mtd_jax.video.write import write_mp4
from tests.helpers.videos import SquareDetector, damage, mux, noise, numbered, with_squares

ANY_LENGTH = FindSettings(link=LinkSettings(min_frames=1))


def film(path, pictures, sound=None, **options):
    count = len(pictures)
    return mux(path, pictures, np.arange(count) / 25, noise(count / 25) if sound is None else sound, **options)


def spans(tracks):
    return [(track.start, track.end) for track in tracks]


def test_two_faces_are_two_clips_with_their_own_frames(tmp_path):
    moving = {"red": lambda k: (10 + k // 2, 20, 40), "blue": lambda k: (100, 30, 36) if 20 <= k < 61 else None}
    video = open_video(film(tmp_path / "a.mp4", with_squares(75, moving)))
    clips, found = face_clips(video, SquareDetector())
    assert spans([c.track for c in clips]) == [(0, 75), (20, 61)]
    assert (found.dropped, found.faceless, found.num_frames) == ([], [], 75)
    expected = [[10 + k // 2, 20, 50 + k // 2, 60] for k in range(75)]
    assert np.abs(clips[0].track.boxes - expected).max() <= 2
    sound = video.waveform()
    for clip, (start, end), colour in zip(clips, [(0, 75), (20, 61)], [(230, 30, 30), (30, 30, 230)], strict=True):
        frames = clip.clip.frames[:]
        assert frames.shape == (end - start, 48, 96, 3) and frames.dtype == np.uint8
        assert np.abs(frames[:, 8:-8, 8:-8].astype(int) - colour).mean() < 12
        np.testing.assert_array_equal(clip.clip.waveform, sound[640 * start : 640 * end])
        assert clip.clip.num_frames == end - start
        assert (clip.start_seconds, clip.end_seconds) == (start / 25, end / 25)
        assert np.abs(clip.thumbnail[8:-8, 8:-8].astype(int) - colour).mean() < 12
    assert [clip.clip.name for clip in clips] == ["a/0", "a/1"]


def test_crops_of_another_scale_show_as_much_more_or_less(tmp_path):
    """A red square on grey: of a crop with twice its sides it fills a quarter, of one with half its sides all."""
    video = film(tmp_path / "a.mp4", with_squares(30, {"red": lambda k: (60, 30, 40)}))

    def red(scale, source=None):
        settings = dataclasses.replace(ANY_LENGTH, box_scale=scale)
        (clip,), found = face_clips(open_video(video), source or SquareDetector(), settings)
        ((_, _, face),) = list(crop_tracks(open_video(video), [found.tracks[0].within(0, 1)], box_scale=scale))
        if source is None:
            np.testing.assert_array_equal(clip.clip.frames[:1][0], lower_face(face))
        assert found.tracks[0].box == pytest.approx((60, 30, 100, 70), abs=2)
        return np.mean(clip.thumbnail[..., 0].astype(int) - clip.thumbnail[..., 1] > 100)

    assert red(1.0) > 0.9 and red(0.5) > 0.99 and red(1.25) == pytest.approx(1 / 1.25**2, abs=0.06)
    assert red(1.25, [FaceBox((60, 30, 100, 70))]) > 0.9
    for wrong in (0.4, 2.1):
        with pytest.raises(UserError, match="box_scale: expected 0.5 to 2"):
            FindSettings(box_scale=wrong)


def test_a_cut_ends_the_track_at_its_very_frame(tmp_path):
    first = with_squares(38, {"red": lambda k: (60, 20, 40)})
    second = with_squares(42, {"red": lambda k: (60, 20, 40)})
    background = np.all(second == 110, axis=3)
    second[background] = (250, 250, 20)
    video = open_video(film(tmp_path / "a.mp4", np.concatenate([first, second])))
    found = find_faces(video, SquareDetector())
    assert spans(found.tracks) == [(0, 38), (38, 80)]


def test_gaps_stretches_without_faces_and_short_faces(tmp_path):
    squares = {
        "red": lambda k: None if 30 <= k < 38 or 70 <= k < 100 else (20, 20, 40),  # a short gap, a long one
        "blue": lambda k: (110, 20, 40) if 45 <= k < 56 else None,
    }
    video = open_video(film(tmp_path / "a.mp4", with_squares(150, squares)))
    found = find_faces(video, SquareDetector())
    assert spans(found.tracks) == [(0, 66), (100, 150)]
    assert found.faceless == [(66, 100)]
    assert [(d.start, d.end) for d in found.dropped] == [(45, 56)] and "less than 1 s" in found.dropped[0].reason


def test_the_detector_sees_every_fifth_frame(tmp_path):
    video = open_video(film(tmp_path / "a.mp4", with_squares(60, {"red": lambda k: (20, 20, 40)})))
    for every, expected in ((5, 12 + 1), (1, 60), (59, 2)):
        detector = SquareDetector()
        find_faces(video, detector, FindSettings(every=every))
        assert detector.seen == expected  # the last frame is always searched


def test_a_picture_that_stands_is_searched_once_and_shows_its_face_for_a_while(tmp_path):
    times = np.concatenate([np.arange(40) / 25, 30 + np.arange(40) / 25])
    pictures = with_squares(80, {"red": lambda k: (20 + k // 4, 20, 40)})
    video = open_video(mux(tmp_path / "a.mkv", pictures, times, noise(4)))
    detector = SquareDetector()
    found = find_faces(video, detector)
    assert found.num_frames == 790 and detector.seen < 25
    first, second = spans(found.tracks)
    assert first[0] == 0 and 40 + 120 < first[1] <= 40 + 126 and second[0] in range(745, 751) and second[1] == 790
    assert found.faceless == [(first[1], second[0])]
    assert video.warnings == ["video: one frame is shown for 28.4 s"]
    whole = find_faces(video, SquareDetector(), FindSettings(max_hold=10_000))
    assert spans(whole.tracks) == [(0, 790)]


def test_boxes_that_do_not_fit_name_the_video(tmp_path):
    path = film(tmp_path / "a.mp4", numbered(10))
    with pytest.raises(UserError, match=r"a\.mp4: face box \[100, 0, 150, 50\]"):
        face_clips(open_video(path), [FaceBox((100, 0, 150, 50))])


def test_a_damaged_file_without_a_face_says_that_it_is_damaged(tmp_path):
    video = open_video(damage(film(tmp_path / "a.mp4", with_squares(100, {}))))
    clips, found = face_clips(video, SquareDetector())
    assert clips == [] and no_face([found]) == "no face was found in 4.0 s of video"
    (warning,) = video.warnings
    assert re.match(r"video: \d+ (damaged packets|frames are damaged)", warning)


def test_boxes_below_the_score_are_ignored(tmp_path):
    video = open_video(film(tmp_path / "a.mp4", with_squares(30, {"red": lambda k: (20, 20, 40)})))
    assert len(find_faces(video, SquareDetector(), FindSettings(min_score=0.89)).tracks) == 1
    assert find_faces(video, SquareDetector(), FindSettings(min_score=0.91)).tracks == []


def test_faces_that_are_seen_too_briefly_are_named(tmp_path):
    short = with_squares(50, {"red": lambda k: (20, 20, 40) if 20 <= k < 32 else None})
    clips, found = face_clips(open_video(film(tmp_path / "b.mp4", short)), SquareDetector())
    assert clips == [] and "long enough in 2.0 s of video (one was seen for 0.44 s" in no_face([found])


def test_whole_picture_and_own_boxes_give_the_pictures_as_decoded(tmp_path):
    path = film(tmp_path / "a.mp4", numbered(40, 80, 112))
    frames, _ = read(path)
    boxes = [*WHOLE_FRAME, FaceBox((8, 4, 104, 76), 0.4, 0.8)]
    (whole, part), found = face_clips(open_video(path), boxes)
    np.testing.assert_array_equal(whole.clip.frames[5:9], [lower_face(f) for f in frames[5:9]])
    np.testing.assert_array_equal(part.clip.frames[:], [lower_face(f[4:76, 8:104]) for f in frames[10:20]])
    assert found.num_frames == 40 and len(part.clip.waveform) == 10 * 640


def test_a_clip_of_six_frames(tmp_path):
    video = open_video(film(tmp_path / "a.mp4", with_squares(6, {"red": lambda k: (20, 20, 40)})))
    (clip,), _ = face_clips(video, SquareDetector(), ANY_LENGTH)
    assert clip.clip.num_frames == 6 and clip.clip.frames[:].shape[0] == 6


@pytest.mark.parametrize("late", [0.2, -0.2])
def test_late_streams_stay_on_one_clock(tmp_path, late):
    """A flash and a burst of noise, both 30 frames into their stream, keep the distance the file gives them."""
    times = np.arange(60) / 25 + max(late, 0)
    pictures = with_squares(60, {})
    pictures[30] = 240
    sound = np.zeros(60 * 640, np.int16)
    sound[30 * 640 : 31 * 640] = noise(0.04)
    video = open_video(mux(tmp_path / "a.mp4", pictures, times, sound, sound_start=max(-late, 0)))
    (clip,), _ = face_clips(video, WHOLE_FRAME)
    frames, waveform = clip.clip.frames[:].astype(float), np.abs(clip.clip.waveform.astype(float))
    flash = np.argmax(frames.mean(axis=(1, 2, 3)))
    burst = np.argmax(waveform[: 640 * 50].reshape(-1, 640).mean(axis=1))
    assert flash == 30 and burst - flash == round(-late * 25)


def test_sound_that_ends_early_shortens_the_clip(tmp_path):
    video = open_video(film(tmp_path / "a.mp4", with_squares(75, {"red": lambda k: (20, 20, 40)}), noise(1)))
    (clip,), _ = face_clips(video, SquareDetector())
    assert len(clip.clip.frames) == 75 and 25 <= clip.clip.num_frames <= 27


def test_synthetic_portraits_through_mtcnn(tmp_path):
    recording = record(0, 2, 0, 1.4)
    pictures, box = portrait(recording)
    write_mp4(tmp_path / "a.mp4", pictures, recording.waveform)
    (clip,), found = face_clips(open_video(tmp_path / "a.mp4"), load_detector("mtcnn"))
    assert (clip.track.start, clip.track.end, found.faceless) == (0, 35, [])
    assert iou(clip.track.boxes, np.array([box], float)).min() > 0.6
    np.testing.assert_array_equal(clip.clip.frames[0:2][1], clip.clip.frames[1:2][0])


def test_progress_follows_the_pass(tmp_path):
    video = open_video(film(tmp_path / "a.mp4", with_squares(100, {"red": lambda k: (20, 20, 40)})))
    told = []
    face_clips(video, SquareDetector(), progress=lambda done, total: told.append((done, round(total))))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_full_size_pictures_are_let_go(tmp_path, monkeypatch):
    """Of a long video no more than a handful of pictures may be alive at once."""
    convert = Picture.rgb
    pictures, most = [], 0

    def watched(self):
        nonlocal most
        own = convert(self).copy()
        pictures.append(weakref.ref(own))
        most = max(most, sum(reference() is not None for reference in pictures))
        return own

    monkeypatch.setattr(Picture, "rgb", watched)
    path = film(tmp_path / "a.mkv", with_squares(200, {"red": lambda k: (20, 20, 40) if k % 100 < 60 else None}))
    face_clips(open_video(path), SquareDetector())
    assert 100 < len(pictures) < 200 and most <= 3


def test_pictures_without_a_face_are_converted_only_to_be_searched(tmp_path, monkeypatch):
    converted = []
    convert = Picture.rgb
    monkeypatch.setattr(Picture, "rgb", lambda self: converted.append(self) or convert(self))
    path = film(tmp_path / "a.mkv", with_squares(100, {}))
    face_clips(open_video(path), SquareDetector())
    assert len(converted) == 4


class Watched(SquareDetector):
    """Notes the sizes of what it is shown."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def detect(self, frames):
        self.sizes += [frame.shape[:2] for frame in frames]
        return super().detect(frames)


def test_between_searches_of_the_whole_picture_a_face_is_searched_for_where_it_was(tmp_path):
    moving = {"red": lambda k: (10 + 4 * k, 20, 40)}  # half its size from one search to the next
    video = open_video(film(tmp_path / "a.mp4", with_squares(40, moving, 240, 320)))
    detector = Watched()
    (clip,), _ = face_clips(video, detector)
    assert spans([clip.track]) == [(0, 40)]
    assert np.abs(clip.track.boxes - [[10 + 4 * k, 20, 50 + 4 * k, 60] for k in range(40)]).max() <= 2
    assert [size == (240, 320) for size in detector.sizes] == [True, *8 * [False]]


@pytest.mark.parametrize("fps", [5, 12, 25])
def test_a_face_that_comes_in_is_traced_back_to_where_it_did(tmp_path, fps):
    """At any frame rate: of frames that repeat, too."""
    pictures = with_squares(4 * fps, {"red": lambda k: (20 + k, 20, 40) if k >= 1.6 * fps else None})
    path = mux(tmp_path / "a.mkv", pictures, np.arange(4 * fps) / fps, noise(4))
    (clip,), _ = face_clips(open_video(path), SquareDetector())
    assert 40 <= clip.track.start <= 45 and clip.track.end >= 98


def test_a_face_that_is_lost_is_searched_for_in_the_whole_picture(tmp_path):
    jumping = {"red": lambda k: (10, 20, 40) if k < 33 else (250, 150, 40)}
    video = open_video(film(tmp_path / "a.mp4", with_squares(70, jumping, 240, 320)))
    detector = Watched()
    clips, _ = face_clips(video, detector)
    assert spans([clip.track for clip in clips]) == [(0, 31), (35, 70)]
    whole = [number for number, size in enumerate(detector.sizes) if size == (240, 320)]
    assert len(whole) == 2  # at frames 0 and 35


def test_faces_side_by_side_stay_two_faces(tmp_path):
    beside = {"red": lambda k: (100, 60, 60), "blue": lambda k: None if k >= 30 else (150, 60, 60)}
    video = open_video(film(tmp_path / "a.mp4", with_squares(75, beside, 240, 320)))
    clips, _ = face_clips(video, SquareDetector())
    assert [(c.track.start, c.track.end, c.clip.num_frames) for c in clips] == [(0, 75, 75), (0, 26, 26)]
    for clip, colour in zip(clips, [(230, 30, 30), (30, 30, 230)], strict=True):
        assert np.abs(clip.clip.frames[:][:, 8:-8, 30:60].astype(int) - colour).mean() < 30


def test_the_crops_of_a_face_are_those_of_its_track(tmp_path):
    """Cropped as the pass goes along, with gaps and cuts, as if the tracks had been known from the start."""
    squares = {
        "red": lambda k: None if 30 <= k < 38 else (20 + k, 20 + k // 3, 40),
        "blue": lambda k: None if k < 12 or 30 < k < 60 else (220 - k, 90, 36),
    }
    pictures = with_squares(120, squares, 180, 320)
    pictures[80:] = 255
    pictures[80:, 20:60, 20:60] = (230, 30, 30)
    path = film(tmp_path / "a.mkv", pictures)
    settings = FindSettings(link=LinkSettings(min_frames=5))
    clips, found = face_clips(open_video(path), SquareDetector(), settings)
    assert len(clips) >= 3 and find_faces(open_video(path), SquareDetector(), settings).tracks[0].end == 80
    expected = [[] for _ in clips]
    for number, _, face in crop_tracks(open_video(path), found.tracks):
        expected[number].append(lower_face(face))
    for clip, halves in zip(clips, expected, strict=True):
        np.testing.assert_array_equal(clip.clip.frames[:], halves)


@pytest.mark.parametrize("in_memory", [0, 3 * 13824, 1 << 30])
def test_spool_gives_back_what_it_got_on_disk_or_not(in_memory):
    halves = np.random.default_rng(0).integers(0, 256, (20, 48, 96, 3), dtype=np.uint8)
    spool = FaceSpool(in_memory or 1)
    even, odd = [], []
    for number, half in enumerate(halves):
        (odd if number % 2 else even).append(spool.append(half))
    views = FaceView(spool, np.array(even)), FaceView(spool, np.array(odd))
    np.testing.assert_array_equal(views[0][2:7], halves[4:14:2])
    np.testing.assert_array_equal(views[1][:], halves[1::2])
    assert len(views[0]) == 10 and views[0][8:50].shape == (2, 48, 96, 3) and views[0][3:3].shape == (0, 48, 96, 3)
