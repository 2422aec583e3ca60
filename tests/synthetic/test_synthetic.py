"""Synthetic talking faces: reproducible, in sync, and written to disk whole."""

import dataclasses
import json

import numpy as np
import pytest
import simplejpeg
import soundfile

from mtd_jax.errors import UserError
from mtd_jax.synthetic import corpus
from mtd_jax.synthetic.clips import portrait, record, sample_speaker, shift_audio, synthetic_clip
from mtd_jax.synthetic.corpus import synthesize
from mtd_jax.synthetic.face import face_texture, sample_face
from mtd_jax.synthetic.mouth import pose
from mtd_jax.synthetic.render import render, sample_scene
from mtd_jax.synthetic.speech import PHONES, VISEMES, utter
from mtd_jax.synthetic.variety import Variety
from mtd_jax.synthetic.voice import sample_voice, speak

SMALL = {"seed": 5, "train_clips": 3, "val_clips": 1, "test_clips": 2, "seconds": 0.4, "clips_per_speaker": 2,
         "mp4_clips": 1, "workers": 1, "progress": False}  # fmt: skip


def still(name):
    """Visemes of one phone, held for one frame."""
    return np.array([PHONES[name][1]], np.float32)


def test_a_clip_has_the_promised_shape():
    clip = synthetic_clip(0, 1, 2, seconds=1.0)
    assert clip.frames.shape == (25, 48, 96, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.waveform.shape == (16_000,)
    assert clip.waveform.dtype == np.int16
    assert clip.num_frames == 25


def test_the_same_numbers_give_the_same_bytes_and_others_do_not():
    first = synthetic_clip(3, 1, 0, seconds=0.4)
    sample_speaker.cache_clear()
    face_texture.cache_clear()
    again = synthetic_clip(3, 1, 0, seconds=0.4)
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.waveform, again.waveform)
    for other in ((4, 1, 0), (3, 2, 0), (3, 1, 1)):
        clip = synthetic_clip(*other, seconds=0.4)
        assert not np.array_equal(first.frames, clip.frames)
        assert not np.array_equal(first.waveform, clip.waveform)


def test_speakers_keep_their_face_and_voice_across_clips():
    one, two = record(0, 7, 0, 0.2), record(0, 7, 1, 0.2)
    assert one.speaker == two.speaker
    assert one.speaker != record(0, 8, 0, 0.2).speaker


@pytest.mark.parametrize("aspect", [field.name for field in dataclasses.fields(Variety)])
def test_each_aspect_of_variety_changes_what_it_is_named_for_and_nothing_else(aspect):
    """With factor 0 all speakers are alike in it; the rest is as it was."""
    parts = {
        "identity": lambda r: (r.speaker.face.skin, r.speaker.face.mouth_width, r.speaker.face.aspect),
        "mouth": lambda r: r.speaker.face.inside,
        "beard": lambda r: r.speaker.face.beard,
        "light": lambda r: (r.scene.light, r.scene.tint.tolist()),
        "pose": lambda r: r.scene.motion.tolist(),
        "camera": lambda r: (r.scene.blur, r.scene.noise, r.scene.jitter.tolist()),
        "voice": lambda r: (r.speaker.voice.pitch_hz, r.speaker.voice.tract),
        "articulation": lambda r: r.speaker.clarity,
    }
    plain = [record(5, speaker, 0, 0.2) for speaker in (1, 2)]
    alike = [record(5, speaker, 0, 0.2, Variety(**{aspect: 0.0})) for speaker in (1, 2)]
    assert parts[aspect](alike[0]) == parts[aspect](alike[1]) != parts[aspect](plain[0])
    wide = Variety(**{aspect: 2.0})
    assert all(render_once(record(5, speaker, 0, 0.2, wide)).std() > 5 for speaker in range(4))
    for name, part in parts.items():
        if name != aspect:
            assert [part(r) for r in alike] == [part(r) for r in plain], name


def render_once(recording):
    return render(recording.speaker.face, recording.visemes, recording.scene)


def test_a_mouth_without_teeth_is_darker_where_they_were():
    bright, dark = (record(5, 1, 0, 2.0, Variety(mouth=mouth)) for mouth in (1.0, 0.0))
    frames = [render(r.speaker.face, r.visemes, r.scene, first_row=48).astype(float) for r in (bright, dark)]
    assert (frames[0] - frames[1]).max() > 60 and (frames[0] - frames[1]).mean() > 0


def test_varieties_that_make_no_sense_are_named():
    assert Variety.parse([]) == Variety() and Variety().changes == {}
    assert Variety.parse(["beard=0", "pose=1.5"]).changes == {"beard": 0.0, "pose": 1.5}
    for setting, message in (("beard", "NAME=FACTOR"), ("wig=1", "one of identity"), ("pose=3", "0 to 2")):
        with pytest.raises(UserError, match=message):
            Variety.parse([setting])


def test_the_lower_half_alone_equals_the_lower_half_of_the_whole():
    recording = record(0, 2, 0, 0.6)
    face, visemes, scene = recording.speaker.face, recording.visemes, recording.scene
    whole = render(face, visemes, scene)
    np.testing.assert_array_equal(render(face, visemes, scene, first_row=48), whole[:, 48:])


def test_speech_is_neither_silent_nor_clipped():
    for speaker in range(6):
        waveform = record(1, speaker, 0, 2.0).waveform / 32768
        assert 0.02 < np.sqrt(np.mean(waveform**2)) < 0.2
        assert np.mean(np.abs(waveform) > 0.999) < 1e-3


def test_a_vowel_rings_at_its_formants():
    rng = np.random.default_rng(0)
    voice = sample_voice(rng)
    for name in ("i", "a"):
        tracks = np.tile(np.array(PHONES[name][0][:7], float), (1000, 1))
        waveform = speak(np.random.default_rng(1), voice, tracks).astype(float)
        spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)))) ** 2
        hertz = np.arange(len(spectrum)) * 16_000 / len(waveform)
        envelope = np.convolve(spectrum, np.hanning(400), mode="same")

        def level(formant, hertz=hertz, envelope=envelope):
            return envelope[np.argmin(np.abs(hertz - formant * voice.tract))]

        f1, f2, f3 = PHONES[name][0][:3]
        assert level(f2) > 4 * level((f1 + f2) / 2 if name == "i" else (f2 + f3) / 2)


def test_loudness_follows_the_mouth():
    """Sound and picture of one recording belong together: an open mouth is loud, at lag 0 more than elsewhere."""
    lags = range(-10, 11)
    total = np.zeros(len(lags))
    for speaker in range(8):
        recording = record(2, speaker, 0, 4.0)
        loudness = np.log(recording.waveform.reshape(-1, 640).astype(float).std(axis=1) + 50)
        opening = recording.visemes[:, VISEMES.index("open")]
        total += [np.corrcoef(loudness[10:-10], np.roll(opening, lag)[10:-10])[0, 1] for lag in lags]
    assert abs(lags[int(np.argmax(total))]) <= 1
    assert total.max() / 8 > 0.4


def test_the_exposure_is_the_mean_over_the_forty_milliseconds_of_a_frame():
    utterance = utter(np.random.default_rng(0), 10)
    assert utterance.voice.shape == (400, 7)
    np.testing.assert_allclose(utterance.frame_visemes()[3], utterance.mouth[120:160].mean(axis=0), rtol=1e-6)


def test_lips_do_what_the_phone_asks():
    face = sample_face(np.random.default_rng(4))
    gap = {}
    for name in ("a", "i", "p", "m"):
        lips = pose(face, still(name))
        gap[name] = (lips.rise + lips.drop).item()
    assert gap["a"] > 10 > gap["i"] > 1 > gap["p"] == gap["m"] == 0
    width = {name: pose(face, still(name)).half_width.item() for name in ("i", "a", "u")}
    assert width["i"] > width["a"] > 1.3 * width["u"]


@pytest.mark.parametrize("seed", range(5))
def test_pixels_show_the_open_mouth_and_the_teeth(seed):
    rng = np.random.default_rng(seed)
    face = sample_face(rng)
    scene = sample_scene(rng, 1)
    images = {name: render(face, still(name), scene, first_row=48)[0].astype(float) for name in ("a", "p", "s")}
    changed = {name: np.abs(image - images["p"]).max(axis=2) > 25 for name, image in images.items()}
    rows, columns = np.nonzero(changed["a"])
    assert np.ptp(columns) > 20
    assert np.ptp(rows) > 10
    assert changed["a"].sum() > 200
    # Where an /a/ is darkest an /s/ shows teeth, or at least lips.
    hole = np.argsort(images["a"][16:40, 30:66].mean(axis=2).ravel())[:60]
    brightness = {name: image[16:40, 30:66].mean(axis=2).ravel()[hole].mean() for name, image in images.items()}
    assert brightness["s"] > 1.5 * brightness["a"]


def test_a_portrait_holds_the_crop_in_its_box():
    """The box of the portrait, shrunk to 96×96, is the face crop."""
    recording = record(0, 3, 0, 0.2)
    film, (x0, y0, x1, y1) = portrait(recording)
    crop = render(recording.speaker.face, recording.visemes, recording.scene).astype(float)
    assert film.shape == (5, 256, 256, 3)
    rows = np.linspace(y0, y1 - 1, 96).round().astype(int)
    columns = np.linspace(x0, x1 - 1, 96).round().astype(int)
    box = film[:, rows][:, :, columns].astype(float)
    face_only = slice(20, 90), slice(20, 76)
    for a, b in zip(crop, box, strict=True):
        assert np.corrcoef(a[face_only].ravel(), b[face_only].ravel())[0, 1] > 0.9


def test_shift_audio_positive_means_the_sound_is_early():
    waveform = np.zeros(6400, np.int16)
    waveform[3200] = 1
    assert np.flatnonzero(shift_audio(waveform, 2)).tolist() == [3200 - 1280]
    assert np.flatnonzero(shift_audio(waveform, -2)).tolist() == [3200 + 1280]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return synthesize(tmp_path_factory.mktemp("corpus") / "new", **SMALL)


def test_the_corpus_is_in_the_lrs2_layout(written):
    lists = {name: (written / f"{name}.txt").read_text().splitlines() for name in ("train", "val", "test")}
    assert {name: len(lines) for name, lines in lists.items()} == {"train": 3, "val": 1, "test": 2}
    speakers = {name: {line.split("/")[0] for line in lines} for name, lines in lists.items()}
    assert len(set.union(*speakers.values())) == sum(len(s) for s in speakers.values())
    assert all(len(line.split()) == 2 for line in lists["test"])
    folder = written / lists["train"][2]
    assert sorted(p.name for p in folder.iterdir()) == sorted([f"{i}.jpg" for i in range(10)] + ["audio.wav"])
    waveform, rate = soundfile.read(folder / "audio.wav", dtype="int16")
    assert rate == 16_000
    expected = synthetic_clip(5, 1, 0, seconds=0.4)
    np.testing.assert_array_equal(waveform, expected.waveform)
    image = simplejpeg.decode_jpeg((folder / "4.jpg").read_bytes(), colorspace="RGB")
    assert image.shape == (96, 96, 3)
    assert np.abs(image[48:].astype(float) - expected.frames[4]).mean() < 6


def test_the_mp4_lies_beside_its_box(written):
    films = sorted(p.name for p in (written / "mp4").rglob("*.*"))
    assert films == ["00000.json", "00000.mp4"]
    note = json.loads(next((written / "mp4").rglob("*.json")).read_text())
    x0, y0, x1, y1 = note["box"]
    assert 0 < x0 < x1 < 256
    assert 0 < y0 < y1 < 256
    assert note["audio_delay_samples"] == 0


def test_a_complete_corpus_is_reused_and_another_is_refused(written):
    stamp = (written / "corpus.json").stat().st_mtime_ns
    assert synthesize(written, **SMALL) == written
    assert (written / "corpus.json").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="other settings"):
        synthesize(written, **(SMALL | {"seed": 6}))


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        synthesize(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    calls = []

    def fail(task):
        calls.append(task)
        raise OSError("disk full")

    monkeypatch.setattr(corpus, "_write_clip", fail)
    with pytest.raises(UserError, match="disk full"):
        synthesize(tmp_path / "new", **SMALL)
    assert len(calls) == 1
    assert not list(tmp_path.iterdir())


def test_worker_processes_write_the_same_corpus(tmp_path, written):
    other = synthesize(tmp_path / "two", **(SMALL | {"workers": 2}))
    files = sorted(p.relative_to(written) for p in written.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    assert all((written / f).read_bytes() == (other / f).read_bytes() for f in files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": 0.0}, "seconds"),
        ({"clips_per_speaker": 0}, "clips_per_speaker"),
        ({"mp4_clips": 3}, "mp4_clips"),
        ({"train_clips": -1}, "clip counts"),
        ({"workers": 0}, "workers"),
    ],
)
def test_impossible_settings_are_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        synthesize(tmp_path / "new", **(SMALL | change))
    assert not list(tmp_path.iterdir())
