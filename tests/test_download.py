"""Downloads from a server on this machine: whole, resumed, refused."""

import contextlib
import hashlib
import http.server
import threading

import pytest

from mtd_jax import download as module
from mtd_jax.download import download
from mtd_jax.errors import UserError

CONTENT = bytes(range(256)) * 4000


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, and misbehaves as its server says."""

    def do_GET(self):
        plan = self.server.plan
        self.server.requests.append(dict(self.headers))
        if plan.get("status"):
            return self.send_error(plan["status"])
        begins = 0
        asked = self.headers.get("Range")
        same = self.headers.get("If-Range") == plan.get("etag")
        if asked and same and plan.get("ranges", True):
            begins = int(asked.removeprefix("bytes=").removesuffix("-"))
            if begins >= len(CONTENT):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            begins = plan.get("begins", begins)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begins}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.send_response(200)
        content = plan.get("content", CONTENT)[begins:]
        if plan.get("chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"2000\r\n" + content[:1000])
            return None
        self.send_header("Content-Length", plan.get("length", str(len(content))))
        etag = plan.get("resumed_etag") if begins else plan.get("etag")
        if etag or plan.get("etag"):
            self.send_header("ETag", etag or plan["etag"])
        self.end_headers()
        cuts = plan.get("cuts", [])
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content[: cuts.pop(0)] if cuts else content)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.plan, running.requests = {"etag": '"one"'}, []
        running.url = f"http://127.0.0.1:{running.server_address[1]}/weights/x%20y.pth?raw=1"
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_file_is_fetched_once_and_its_checksum_said(server, tmp_path, capsys):
    path = download(server.url, tmp_path)
    assert path.read_bytes() == CONTENT and path.name.endswith("-x_y.pth")
    said = capsys.readouterr().err
    assert hashlib.sha256(CONTENT).hexdigest() in said and str(path) in said
    assert download(server.url, tmp_path) == path and len(server.requests) == 1
    assert list(tmp_path.iterdir()) == [path] and capsys.readouterr().err == ""


def test_a_broken_connection_goes_on_where_it_ended(server, tmp_path):
    server.plan["cuts"] = [300_000, 1000]
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert [request.get("Range") for request in server.requests] == [None, "bytes=300000-", "bytes=301000-"]


def test_the_next_call_resumes_what_three_attempts_have_left(server, tmp_path):
    server.plan["cuts"] = [5000, 5000, 5000]
    with pytest.raises(UserError, match=r"broke off after 15000 bytes .*; run the command again to resume it"):
        download(server.url, tmp_path)
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1]["Range"] == "bytes=15000-"


@pytest.mark.parametrize("plan", [{"etag": None}, {"etag": '"one"', "ranges": False}, {"etag": 'W/"weak"'}])
def test_without_proof_that_the_file_is_the_same_it_begins_again(server, tmp_path, plan):
    server.plan |= plan
    server.plan["cuts"] = [7000]
    assert download(server.url, tmp_path).read_bytes() == CONTENT


def test_another_file_under_the_same_address_replaces_the_part(server, tmp_path):
    server.plan["cuts"] = [7000, 10, 10]
    with pytest.raises(UserError, match="broke off"):
        download(server.url, tmp_path)
    server.plan = {"etag": '"two"', "content": CONTENT[::-1]}
    assert download(server.url, tmp_path).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("status, expected", [(404, "404 Not Found"), (403, "403 Forbidden"), (500, "500")])
def test_the_servers_refusal_is_one_line(server, tmp_path, status, expected):
    server.plan["status"] = status
    with pytest.raises(UserError, match=f"the server says {expected}"):
        download(server.url, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_whole_part_is_not_fetched_again(server, tmp_path):
    """As when the process was killed before it gave the file its name."""
    server.plan["cuts"] = [7000, 10, 10]
    with pytest.raises(UserError, match="broke off"):
        download(server.url, tmp_path)
    (part,) = tmp_path.glob("*.partial")
    part.write_bytes(CONTENT)
    assert download(server.url, tmp_path).read_bytes() == CONTENT and len(server.requests) == 4


@pytest.mark.parametrize("plan", [{"begins": 5}, {"resumed_etag": '"two"'}])
def test_another_part_than_asked_for_is_not_joined_on(server, tmp_path, plan):
    server.plan |= plan | {"cuts": [7000]}
    with contextlib.suppress(UserError):
        download(server.url, tmp_path)
    server.plan = {"etag": '"one"'}
    assert download(server.url, tmp_path).read_bytes() == CONTENT


def test_a_chunked_reply_that_ends_early_is_not_taken_for_whole(server, tmp_path):
    server.plan["chunked"] = True
    with pytest.raises(UserError, match="the connection ended early"):
        download(server.url, tmp_path)
    server.plan = {}
    assert download(server.url, tmp_path).read_bytes() == CONTENT


def test_notes_beside_a_part_that_are_damaged_begin_again(server, tmp_path):
    server.plan["cuts"] = [7000, 10, 10]
    with pytest.raises(UserError, match="broke off"):
        download(server.url, tmp_path)
    (facts,) = tmp_path.glob("*.json")
    facts.write_text("")
    assert download(server.url, tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_too_long_begins_again(server, tmp_path):
    server.plan["cuts"] = [7000, 10, 10]
    with pytest.raises(UserError, match="broke off"):
        download(server.url, tmp_path)
    (part,) = tmp_path.glob("*.partial")
    part.write_bytes(CONTENT * 2)
    assert download(server.url, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.pth", "http://[x/x.pth", "https://"])
def test_an_address_that_leads_nowhere(tmp_path, url, monkeypatch):
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    with pytest.raises(UserError, match="can(not|) be downloaded") as refused:
        download(url, tmp_path)
    assert "urlopen" not in str(refused.value) and "Errno" not in str(refused.value)


def test_a_length_that_is_no_number_is_not_believed(server, tmp_path):
    server.plan["length"] = "many"
    assert download(server.url, tmp_path).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        download("http://127.0.0.1:9/x.pth", tmp_path / "file" / "downloads")
