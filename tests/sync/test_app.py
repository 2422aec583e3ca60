"""The page: as a program calls it, and as Chromium shows it."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mtd_jax.cli import run
from mtd_jax.synthetic.clips import portrait, record, shift_audio
from mtd_jax.video.decode import read
from mtd_jax.video.write import write_mp4

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LATE = 6  # frames
MAIN = Path(__file__).parents[2] / "main.py"
# Of its own process: importing Gradio leaves sockets and event loops behind, which our tests take for errors.
CLIENT = """
import json, sys, gradio_client
address, film, folder = sys.argv[1:]
client = gradio_client.Client(address, verbose=False, download_files=folder)
told, pictures, copy = client.predict(gradio_client.handle_file(film), api_name="/check")
print(json.dumps([told, pictures, copy["value"] if isinstance(copy, dict) else copy]))
"""


def asked(address, film, folder):
    """What a program gets: the verdict in words, the pictures, the copy."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, address, film, folder], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    talk = record(0, 3, 0, 4.0)
    path = tmp_path_factory.mktemp("app") / "talk.mp4"
    write_mp4(path, portrait(talk)[0], shift_audio(talk.waveform, -LATE))
    return path


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of the command's page. In the end the command is told to stop, and must leave nothing behind."""
    if find_spec("gradio") is None:
        pytest.skip("gradio is not installed")
    folder = tmp_path_factory.mktemp("served")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, MAIN, "--mode=app", f"--port={port}"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": folder}
    ) as page:
        said = page.stderr.readline()
        assert said == f"http://127.0.0.1:{port} is the page; Ctrl-C ends it\n", said + page.stderr.read()
        yield said.split()[0]
        assert list(folder.glob("mtd_jax_app_*/*"))
        page.terminate()
        assert page.wait(60) == 0
    assert not list(folder.glob("mtd_jax_app_*"))


def test_a_program_gets_the_verdict_and_the_copy(address, film, tmp_path):
    """Of a film with a suffix that nobody can write."""
    told, pictures, copy = asked(address, shutil.copy(film, tmp_path / "talk.upload"), tmp_path)
    late = re.match(r"## The audio is late by (\d+) ms", told)
    assert late and abs(int(late[1]) - 40 * LATE) <= 25, told
    assert "measured again: audio and video are in sync" in told
    assert pictures.count("<img") == 2
    assert copy.endswith("talk-in-sync.mkv") and len(read(copy)[0]) == len(read(film)[0])


def test_what_cannot_be_judged_is_said_on_the_page(address, tmp_path):
    silent = tmp_path / "noise.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (50, 96, 96, 3), dtype=np.uint8)
    write_mp4(silent, frames, np.zeros(50 * 640, np.int16))
    told, pictures, copy = asked(address, silent, tmp_path)
    assert told.startswith("## No verdict\n\nnoise.mp4: no face was found") and not pictures and not copy


@pytest.mark.skipif(not (CHROMIUM and find_spec("playwright")), reason="no Chromium or Playwright is installed")
def test_chromium_uploads_a_film_reads_the_verdict_and_plays_the_copy(address, film, tmp_path):
    from playwright.sync_api import sync_playwright

    requests = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.set_input_files("input[type=file]", film)
        page.wait_for_selector("video")
        page.get_by_role("button", name="Check").click()
        verdict = page.wait_for_selector("h2", timeout=120_000)
        assert verdict.inner_text().startswith("The audio is late by 2")
        page.wait_for_selector("img[alt^='score of every window']")
        with page.expect_download() as download:
            page.locator("a[download]").click()
        copy = tmp_path / download.value.suggested_filename
        download.value.save_as(copy)
        assert copy.name == "talk-in-sync.mp4"

        page.goto(copy.as_uri())
        page.evaluate("document.querySelector('video').play()")
        page.wait_for_function("document.querySelector('video').currentTime > 0.5", timeout=30_000)

        page.goto(address)  # another film takes the old verdict away
        assert page.locator("h2").count() == 0
        browser.close()
    assert [url for url in requests if not url.startswith((address, "data:", "blob:", "file:"))] == []


def test_a_port_that_is_taken_is_said_in_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["", "--mode=app", f"--port={port}"]) == 1
    assert capsys.readouterr().err == (
        f"error: cannot listen at 127.0.0.1:{port} (Address already in use): name another --port or --host\n"
    )


def test_an_impossible_port_is_refused(capsys):
    assert run(["", "--mode=app", "--port=70000"]) == 1
    assert capsys.readouterr().err == "error: --port: expected 1 to 65535, got 70000\n"
