"""`--mode=app`: a page in the browser. Drop or record a video, get the verdict, download a copy in sync."""

import dataclasses
import html
import os
import re
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import gradio as gr

from mtd_jax.errors import UserError
from mtd_jax.faces.search import face_source
from mtd_jax.models import load_model, shown
from mtd_jax.scoring import Scorer
from mtd_jax.sync.command import text, write_fixed
from mtd_jax.sync.detect import detect_offset
from mtd_jax.sync.fix import check_output
from mtd_jax.sync.report import DRAWINGS_STYLE, drawings
from mtd_jax.sync.verdict import Result

_MOST_MEGABYTES = 1000  # of an upload
_KEPT = 3600  # seconds; then uploads and copies are deleted
_WAITING = 8  # visitors; others are asked to come back
_ABOUT = """# Are the lips in sync?

Drop a video of someone who speaks, or record one. It stays on the machine that serves this page, and is deleted
within an hour or so. Where the browser cannot play a format, it is checked all the same.
"""
_RANGES = {"±0.6 s": 15, "±1.6 s": 40, "±5 s": 125}  # frames
_STYLE = DRAWINGS_STYLE + "video { max-height: 35vh }"


def app(checkpoint=None, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serves the page until Ctrl-C or SIGTERM, then deletes what was uploaded.

    Args:
      checkpoint: see `load_model`; None: the included model.
      host: address to listen on. Any but the loopback's lets the network in.
      port: to listen on; must be free.

    Raises:
      UserError: there is no such model.
    """
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with tempfile.TemporaryDirectory(prefix="mtd_jax_app_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build(checkpoint, Path(folder))
        page.queue(max_size=_WAITING, default_concurrency_limit=1).launch(
            server_name=host,
            server_port=port,
            max_file_size=_MOST_MEGABYTES * gr.FileSize.MB,
            css=_STYLE,
            footer_links=["gradio"],
            run_history=False,
            show_error=True,
            share=False,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
        )
        print(f"http://{host}:{port} is the page; Ctrl-C ends it", file=sys.stderr, flush=True)
        ended.wait()
        page.close(verbose=False)


def build(checkpoint, folder: Path) -> gr.Blocks:
    """The page. Args: folder: for copies in sync."""
    scorer, source, name = Scorer(load_model(checkpoint)), face_source("mtcnn"), shown(checkpoint)

    def check(video: str | None, reach: str = next(iter(_RANGES)), progress: Any = gr.Progress()):  # noqa: B008 (how Gradio wants it)
        if video is None:
            return "## Drop a video first", *nothing()

        def find(path, track: str | None = None) -> Result:
            found = detect_offset(
                scorer,
                path,
                faces=source,
                max_shift=_RANGES[reach],
                audio_track=track,
                progress=_Shown(progress),
            )
            return dataclasses.replace(found, model=name)

        try:
            result = find(video)
        except UserError as error:
            why = str(error).replace(video, Path(video).name)
            return f"## No verdict\n\n{html.escape(why)}", *nothing()
        note, copy = _in_sync(result, find, folder)
        headline, *details = text(result).removeprefix(f"{video}: ").splitlines()
        details = [re.sub(r"--max_shift(=\d+)?", "a larger range", line) for line in details]  # the page's word
        lines = [f"## {headline[0].upper()}{headline[1:]}", *details, note]
        told = "\n\n".join(line.strip() for line in lines if line)
        return told, drawings(result), gr.File(copy, visible=copy is not None)

    def nothing():
        return "", gr.File(None, visible=False)

    with gr.Blocks(title="Are the lips in sync?", analytics_enabled=False, delete_cache=(60, _KEPT)) as page:
        gr.Markdown(_ABOUT)
        with gr.Row():
            with gr.Column():
                video = gr.Video(label="Video", sources=["upload", "webcam"])
                reach = gr.Radio(list(_RANGES), value=next(iter(_RANGES)), label="Range of offsets")
                button = gr.Button("Check", variant="primary")
            with gr.Column():
                verdict = gr.Markdown(min_height=120)
                copy = gr.File(label="Copy in sync", interactive=False, visible=False)
        pictures = gr.HTML()
        shown_there = [verdict, pictures, copy]
        run = button.click(check, [video, reach], shown_there, show_progress_on=verdict)
        video.change(
            lambda: ("", *nothing()),
            None,
            shown_there,
            show_progress="hidden",
            cancels=run,
            api_visibility="private",
        )
    return page


def _in_sync(result: Result, find, folder: Path) -> tuple[str, str | None]:
    """What was done to bring the video into sync, and the copy; neither where it needs none, or nobody knows."""
    if result.verdict in ("in_sync", "unknown"):
        return "", None
    source = Path(result.video)
    output = Path(tempfile.mkdtemp(dir=folder)) / f"{source.stem}-in-sync{source.suffix}"
    try:
        check_output(source, output)
    except UserError:  # uploads may be called anything
        output = output.with_suffix(".mkv")
    try:
        done = write_fixed(result, output, find)
    except UserError as error:
        output.unlink(missing_ok=True)
        return f"No copy in sync: {str(error).replace(str(output), output.name)}", None
    return f"The copy: {done.removeprefix(f'{output}: ')}", str(output)


class _Shown:
    """A `Progress` on the page."""

    def __init__(self, progress: Any):
        self._progress, self._name, self._total = progress, "", None

    def stage(self, name: str, total: float | None) -> None:
        self._name, self._total = name, total
        self._progress(0, desc=name)

    def update(self, done: float) -> None:
        share = min(done / self._total, 1.0) if self._total else 0
        self._progress(share, desc=self._name)
