import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from cpo_ray.data.sources import fingerprint, list_files, list_parts, open_part, part_bytes
from cpo_ray.errors import DataError

CONTENT = b'{"instruction": "a", "response": "b"}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.jsonl", ".hidden.jsonl", "notes.txt", "wiki-1.xml.bz2", "x-multistream-index.txt.bz2"):
        (tmp_path / name).write_bytes(CONTENT + name.encode())
    (tmp_path / "deeper.jsonl").mkdir()
    return tmp_path


@pytest.fixture
def bucket(folder: Path) -> Iterator[str]:
    """The folder's files in fsspec's memory file system."""
    store = fsspec.filesystem("memory")
    for file in folder.iterdir():
        if file.is_file():
            store.pipe(f"/bucket/{file.name}", file.read_bytes())
    yield "memory://bucket"
    store.rm("/bucket", recursive=True)


def names(parts: list[str]) -> list[str]:
    return [part.rsplit("/", 1)[-1] for part in parts]


def test_a_file_is_one_part(folder: Path) -> None:
    assert list_parts(str(folder / "notes.txt"), "dolly") == [str(folder / "notes.txt")]


def test_a_folder_gives_the_files_of_its_source_by_name(folder: Path) -> None:
    assert names(list_parts(str(folder), "instructions")) == ["a.jsonl", "b.jsonl"]
    assert names(list_parts(str(folder), "wikidump")) == ["wiki-1.xml.bz2"]
    assert names(list_parts(str(folder), "text")) == ["notes.txt"]


def test_a_pattern_gives_the_files_that_match(folder: Path) -> None:
    assert names(list_parts(f"{folder}/*.xml*.bz2", "wikidump")) == ["wiki-1.xml.bz2"]


def test_files_of_a_folder_that_are_passed_over_are_named(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.jsonl.gz", "b.jsonl.zst", "c.parquet", "info.json", "d.xml.7z", "d.xml.zst"):
        (tmp_path / name).write_bytes(b"x")
    for index in ("enwiki-x-multistream-index.txt.bz2", "enwiki-x-multistream-index27.txt-p1p9.bz2"):
        (tmp_path / index).write_bytes(b"x")
    rows = list_files(str(tmp_path), "instructions")
    assert names(rows.parts) == ["a.jsonl", "b.jsonl.zst", "c.parquet"]
    assert [message.replace(f"{tmp_path}/", "") for message in rows.passed_over] == [
        "d.xml.7z is passed over: 7z is not read; convert it: 7z x -so d.xml.7z | zstd > d.xml.zst",
        "a.jsonl.gz is passed over: a.jsonl is read",
        "info.json is passed over beside files of rows (.jsonl, .ndjson, .parquet)",
    ]
    dumps = list_files(str(tmp_path), "wikidump")
    assert names(dumps.parts) == ["a.jsonl.gz", "b.jsonl.zst", "d.xml.zst"]
    assert len(dumps.passed_over) == 3
    assert sum("the index of a multistream dump" in message for message in dumps.passed_over) == 2


def test_a_folder_of_json_files_is_read(tmp_path: Path) -> None:
    for name in ("b.json", "a.json.xz"):
        (tmp_path / name).write_bytes(b"x")
    assert names(list_parts(str(tmp_path), "dolly")) == ["a.json.xz", "b.json"]


@pytest.mark.parametrize("pattern", ["", "/*.bz2", "/x-multistream-index.txt.bz2"])
def test_an_index_alone_is_no_dump(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "x-multistream-index.txt.bz2").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"x-multistream-index\.txt\.bz2 is passed over: the index of a multistream dump"
    ):
        list_parts(f"{tmp_path}{pattern}", "wikidump")


def test_an_existing_file_name_is_not_read_as_a_pattern(folder: Path) -> None:
    odd = folder / "odd[1].jsonl"
    odd.write_bytes(CONTENT)
    assert list_parts(str(odd), "dolly") == [str(odd)]


def test_urls_are_listed_alike(bucket: str) -> None:
    assert list_parts(f"{bucket}/a.jsonl", "dolly") == [f"{bucket}/a.jsonl"]
    assert names(list_parts(bucket, "dolly")) == ["a.jsonl", "b.jsonl"]
    assert names(list_parts(f"{bucket}/*.xml*.bz2", "wikidump")) == ["wiki-1.xml.bz2"]


def test_a_url_is_read_like_a_file(bucket: str) -> None:
    (part, _) = list_parts(bucket, "dolly")
    with open_part(part) as file:
        assert file.read() == CONTENT + b"a.jsonl"
    assert part_bytes(part) == len(CONTENT) + 7


def test_content_decides_the_fingerprint(folder: Path, bucket: str) -> None:
    for place in (str(folder), bucket):
        before = fingerprint(place, "dolly")
        assert len(set(before)) == 2
        assert fingerprint(place, "dolly") == before
    (folder / "a.jsonl").write_bytes(b"x" * (len(CONTENT) + 7))
    fsspec.filesystem("memory").pipe("/bucket/a.jsonl", b"x" * (len(CONTENT) + 7))
    for place in (str(folder), bucket):
        assert fingerprint(place, "dolly")[0] != before[0]
    assert fingerprint(str(folder / "absent.jsonl"), "dolly") == [None]


@pytest.mark.parametrize("place", ["{folder}", "{folder}/*.csv", "{bucket}"])
def test_a_folder_without_such_files(place: str, tmp_path: Path) -> None:
    fsspec.filesystem("memory").makedirs("/empty", exist_ok=True)
    with pytest.raises(DataError, match=r"has no file for source dolly: one ending in \.jsonl, .*\.parquet"):
        list_parts(place.format(folder=tmp_path, bucket="memory://empty"), "dolly")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (
            "nowhere/here.jsonl",
            r"no data file nowhere/here\.jsonl\. Name a file, a folder or a URL with --set data\.path=\.\.\.$",
        ),
        (
            "databricks/databricks-dolly-15k",
            r"For a dataset on the Hugging Face hub, name its files: data\.path=hf://datasets/databricks/",
        ),
        ("memory://nowhere/here.jsonl", r"no data file memory://nowhere/here\.jsonl"),
        ("odd://x.jsonl", "data.path: odd://x.jsonl: Protocol not known: odd"),
        ("s3://bucket/x.jsonl", "needs a package that is not installed: Install s3fs"),
    ],
)
def test_a_part_that_cannot_be_opened_is_an_error_with_a_remedy(part: str, words: str) -> None:
    with pytest.raises(DataError, match=words), open_part(part):
        pass


def test_a_folder_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: Is a directory"), open_part(str(tmp_path)):
        pass


@pytest.fixture
def web() -> Iterator[str]:
    """A server that answers /ok, disconnects during /short, and refuses other paths with the status in the path."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if self.path.startswith(("/ok", "/short")):
                self.send_response(200)
                self.send_header("Content-Length", str(len(CONTENT) + 100 * self.path.startswith("/short")))
                self.end_headers()
            else:
                self.send_error(int(self.path[1:4]))

        def do_GET(self) -> None:
            self.do_HEAD()
            if self.path.startswith(("/ok", "/short")):
                self.wfile.write(CONTENT)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_web_server_is_a_source(web: str) -> None:
    assert list_parts(f"{web}/ok.jsonl", "dolly") == [f"{web}/ok.jsonl"]
    with open_part(f"{web}/ok.jsonl") as file:
        assert list(file) == [CONTENT]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("404.jsonl", r"no data file .*\(404"),
        ("403.jsonl", r"\(403"),
        ("500.jsonl", r"\(500"),
        ("short.jsonl", "cannot be read"),
    ],
)
def test_a_web_server_that_refuses_or_disconnects(web: str, path: str, words: str) -> None:
    with pytest.raises(DataError, match=words), open_part(f"{web}/{path}") as file:
        file.read()
