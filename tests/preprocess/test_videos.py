"""Which videos a folder or a list stands for, and what they are called."""

import os

import pytest

from mtd_jax.errors import UserError
from mtd_jax.preprocess.videos import clip_name, list_videos, video_of, videos_in


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(videos):
    return [name for name, _ in list_videos(videos)]


def test_names_mirror_the_tree(tmp_path):
    root = tmp_path / "my films"
    touch(root / "s1/b.mp4", root / "s1/a b.MKV", root / "x/y/z.mov", root / "top.webm", root / "s1/notes.txt")
    assert names(root) == ["s1/a_b", "s1/b", "my_films/top", "x/y/z"]


def test_links_to_folders_are_followed_once_and_dead_ends_are_listed(tmp_path):
    root = tmp_path / "root"
    touch(root / "s1/a.mp4", tmp_path / "far/b.mp4")
    (root / "s2").symlink_to(tmp_path / "far")
    (tmp_path / "far/back").symlink_to(root)
    (root / "loop").symlink_to(root / "s1")
    (root / "s1/gone.mp4").symlink_to(root / "nowhere.mp4")
    os.mkfifo(root / "s1/pipe.mp4")
    (root / "s1/folder.mp4").mkdir()
    assert names(root) == ["s1/a", "s1/gone", "s1/pipe", "s2/b"]


def test_names_can_be_written_to_a_list(tmp_path):
    touch(tmp_path / "s1" / os.fsdecode(b"\xff\xfe.mp4"), tmp_path / "s1/a\nb.mp4", tmp_path / "s1/ö.mp4")
    assert sorted(names(tmp_path)) == ["s1/__", "s1/a_b", "s1/ö"]


def test_a_folder_is_never_named_like_a_clip(tmp_path):
    touch(tmp_path / "s/a.mp4", tmp_path / "s/a.t1.mp4", tmp_path / "s/a.t1/b.mp4", tmp_path / "s.t22/t.t2x/c.mp4")
    assert sorted(names(tmp_path)) == ["s/a", "s/a.t1", "s/a_t1/b", "s_t22/t.t2x/c"]


@pytest.mark.parametrize(
    ("first", "second"), [("s/a.mp4", "s/a.mkv"), ("s/a b.mp4", "s/a_b.mp4"), ("s/c.t1/d.mp4", "s/c_t1/d.mp4")]
)
def test_two_videos_of_one_name_are_refused_by_their_files(tmp_path, first, second):
    touch(tmp_path / first)
    list_videos(tmp_path)
    touch(tmp_path / second)
    with pytest.raises(UserError, match="would give clips of one name") as error:
        list_videos(tmp_path)
    assert str(tmp_path / first) in str(error.value) and str(tmp_path / second) in str(error.value)


def test_the_name_of_a_clip_says_which_video_and_track_it_is_of():
    videos, tracks = ("s/a", "s/a.t1", "s/a.t1.t1", "s/a.t", "s/a1"), range(1, 13)
    clips = {clip_name(video, track): video for video in videos for track in tracks}
    assert len(clips) == len(videos) * len(tracks)
    assert all(video_of(clip) == video for clip, video in clips.items())


def test_list_files(tmp_path):
    touch(tmp_path / "root/s1/00001.mp4", tmp_path / "root/s2/my film.mkv", tmp_path / "elsewhere/far.mp4")
    (tmp_path / "root/test.txt").write_text("s1/00001 NF\n\ns2/my film.mkv\n../elsewhere/far.mp4\n")
    found = dict(list_videos(tmp_path / "root/test.txt"))
    assert list(found) == ["s1/00001", "s2/my_film", "elsewhere/far"]
    assert os.path.samefile(found["elsewhere/far"], tmp_path / "elsewhere/far.mp4")


def test_unfit_sources(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        list_videos(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no video files"):
        list_videos(tmp_path / "empty")
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(UserError, match="list is empty"):
        list_videos(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("\nfoo/bar\n")
    with pytest.raises(UserError, match="line 2: no such video"):
        list_videos(tmp_path / "list.txt")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="expected a folder of videos, or a text file"):
        list_videos(tmp_path / "binary")


def test_hidden_files_are_no_videos(tmp_path):
    (tmp_path / ".trash").mkdir()
    for name in ("x.mp4", "._x.mp4", ".trash.mov", ".trash/y.mp4"):
        (tmp_path / name).touch()
    assert [path.name for path in videos_in(tmp_path)] == ["x.mp4"]
