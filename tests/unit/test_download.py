"""Downloads against a server on the loopback interface: whole, or nothing and a clear error."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fedmezo.data import sources
from fedmezo.data.download import download
from fedmezo.errors import DataError
from fedmezo.records import Example

CONTENT = b'{"question": "One and one?", "answer": "1+1=2\\n#### 2"}\n' * 5000


class Handler(BaseHTTPRequestHandler):
    """Answers well, with an error, or with less or something else than it promised."""

    def do_GET(self) -> None:
        if self.path == "/missing":
            self.send_error(404)
        elif self.path == "/page":
            self.answer(b"\n<!DOCTYPE html><html>Sign in</html>")
        elif self.path == "/pointer":
            self.answer(b"version https://git-lfs.github.com/spec/v1\n")
        elif self.path == "/cut":
            self.answer(CONTENT[:100_000], promised=len(CONTENT))
        elif self.path == "/unsized":
            self.answer(CONTENT, promised=None)
        else:
            self.answer(CONTENT, promised=len(CONTENT))

    def answer(self, content: bytes, promised: int | None = 0) -> None:
        self.send_response(200)
        if promised is not None:
            self.send_header("Content-Length", str(promised or len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()
        thread.join()


@pytest.mark.parametrize(("page", "total"), [("/data", len(CONTENT)), ("/unsized", None)])
def test_whole_file_with_progress(server: str, tmp_path: Path, page: str, total: int | None) -> None:
    heard: list[tuple[int, int | None]] = []
    download(server + page, tmp_path / "new" / "file.jsonl", lambda done, total: heard.append((done, total)))
    assert (tmp_path / "new" / "file.jsonl").read_bytes() == CONTENT
    assert heard == sorted(heard, key=lambda event: event[0])
    assert len(heard) > 1
    assert heard[-1] == (len(CONTENT), total)


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("/missing", "HTTP 404 Not Found"),
        ("/cut", f"the connection ended after 100000 of {len(CONTENT)} bytes"),
        ("/page", "the server sent a web page instead of the data (take the address of the raw file)"),
        ("/pointer", "the server sent a Git LFS pointer instead of the data (fetch it with `git lfs pull`)"),
    ],
)
def test_failure_leaves_nothing_and_names_address_and_place(
    server: str, tmp_path: Path, page: str, reason: str
) -> None:
    path = tmp_path / "file.jsonl"
    with pytest.raises(DataError) as caught:
        download(server + page, path)
    assert str(caught.value) == (
        f"cannot download {server}{page}: {reason}. To do without, fetch that file elsewhere and put it at {path}"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page", ["/data", "/unsized"])
def test_file_over_the_limit(server: str, tmp_path: Path, page: str) -> None:
    with pytest.raises(DataError, match="the file has more than 1000 bytes, the most that is accepted"):
        download(server + page, tmp_path / "file.jsonl", max_bytes=1000)
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_what_was_there(server: str, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(b"old")
    with pytest.raises(DataError):
        download(f"{server}/cut", path)
    assert path.read_bytes() == b"old"


def test_interrupted_by_the_user(server: str, tmp_path: Path) -> None:
    def interrupt(bytes_done: int, bytes_total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(f"{server}/data", tmp_path / "file.jsonl", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_nobody_answers(server: str, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        url = f"http://127.0.0.1:{closed.server_port}/data"
    with pytest.raises(
        DataError, match=r"cannot download http://127\.0\.0\.1:\d+/data: .*Connection refused.*put it at"
    ):
        download(url, tmp_path / "file.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_data_set_is_fetched_once(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = sources.PinnedFile("gsm8k_train.jsonl", f"{server}/data", sources.PINNED_FILES["gsm8k"].layout)
    monkeypatch.setitem(sources.PINNED_FILES, "gsm8k", pinned)
    heard: list[int] = []
    for _ in range(2):
        examples = sources.load_examples("gsm8k@llm", tmp_path, lambda done, _: heard.append(done))
        assert examples == [Example("One and one?", "", "1+1=2\nThe answer is 2", "")] * 5000
    assert heard.count(len(CONTENT)) == 1
