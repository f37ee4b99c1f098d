"""Kaggle's data come into kagglehub's cache from a server on this machine, which speaks as Kaggle's interface does."""

from __future__ import annotations

import base64
import gc
import hashlib
import io
import json
import logging
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, cast

import pytest

from samestep.cli.main import main
from samestep.data import kaggle
from samestep.data.pack import reader
from samestep.errors import DataError, SamestepError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
"""kagglehub leaves a connection that broke off to the garbage collector."""

ADDRESS = "http://localhost:7777"
"""Where kagglehub looks for Kaggle with KAGGLE_API_ENVIRONMENT=TEST. The server is its proxy, on a port of its own:
that one may be taken, by the same tests in another checkout for one."""

TABLE = b"x,y\n1,0\n2,1\n"
TOKEN = "KGAT_0123456789abcdef"
DATA_SET, COMPETITION = "kaggle:uciml/iris", "kaggle:competition/titanic"
EVIL = "../../../../evil.csv"


@dataclass(frozen=True)
class Answer:
    """What the server sends; with is_cut, only half of it comes."""

    content: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    is_cut: bool = False


def as_json(value: object, status: int = 200) -> Answer:
    return Answer(json.dumps(value).encode(), status, {"Content-Type": "application/json; charset=utf-8"})


def refusal(status: int, *, in_content_only: bool = False) -> Answer:
    return as_json({"code": status, "message": "Permission was denied"}, 200 if in_content_only else status)


def zipped(files: Mapping[str, bytes]) -> bytes:
    place = io.BytesIO()
    with zipfile.ZipFile(place, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return place.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    place = io.BytesIO()
    with tarfile.open(fileobj=place, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return place.getvalue()


def linked() -> bytes:
    """A tar archive with a link upwards, and a file behind it."""
    place = io.BytesIO()
    with tarfile.open(fileobj=place, mode="w") as archive:
        link = tarfile.TarInfo("up")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../.."
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("up/evil.csv"))
    return place.getvalue()


@dataclass
class Kaggle:
    """What the server has, how it answers, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=lambda: {"train.csv": TABLE, "deep/more.csv": b"z\n1\n"})
    version: int = 1
    archive: bytes | None = None
    """Of all files; None: a zip archive of them."""
    listed: list[str] = field(default_factory=list)
    """The files of a folder."""
    changed: str = "Wed, 01 Jan 2020 00:00:00 GMT"
    headers: dict[str, str] = field(default_factory=dict)
    is_cut: bool = False
    is_zipping_files: bool = False
    instead: Answer | None = None
    """The answer to whatever is asked."""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    def answer(self, what: str, said: dict[str, Any], token: str) -> Answer:
        self.asked.append((what, said))
        self.tokens.append(token)
        if self.instead is not None:
            return self.instead
        request = what.split("/")[1]
        if request == "GetDataset":
            return as_json({"ref": "uciml/iris", "currentVersionNumber": self.version})
        if request == "ListTreeDatasetFiles":
            return as_json({"files": [{"name": name, "relativeUrl": name} for name in self.listed]})
        assert request in ("DownloadDataset", "DownloadDataFile", "DownloadDataFiles"), what
        name = said.get("fileName", "all.zip")
        if name not in (*self.files, "all.zip"):
            return refusal(404)
        ending = ".zip" if self.is_zipping_files else ""
        return Answer(status=302, headers={"Location": f"/storage/{name}{ending}"})

    def stored(self, name: str) -> Answer:
        if name == "all.zip":
            content = zipped(self.files) if self.archive is None else self.archive
        elif self.is_zipping_files:
            name = name.removesuffix(".zip")
            content = zipped({PurePosixPath(name).name: self.files[name]})
        else:
            content = self.files[name]
        headers = {"Content-Type": "application/octet-stream", "Last-Modified": self.changed, "Accept-Ranges": "bytes"}
        return Answer(content, headers={**headers, **self.headers}, is_cut=self.is_cut)


class Server(HTTPServer):
    """Serves until it is stopped."""

    def __init__(self, kaggle: Kaggle) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.kaggle = kaggle
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        """Nobody listens any more."""
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
            self.server_close()


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.0: each request has a connection of its own."""

    def do_POST(self) -> None:
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path.startswith(f"{ADDRESS}/api/v1/"), self.path
        what = self.path.removeprefix(f"{ADDRESS}/api/v1/")
        self._send(cast("Server", self.server).kaggle.answer(what, said, self.headers.get("Authorization", "")))

    def do_GET(self) -> None:
        self._send(cast("Server", self.server).kaggle.stored(self.path.removeprefix(f"{ADDRESS}/storage/")))

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in {"X-Kaggle-HubVersion": "99.0", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content[: len(answer.content) // 2] if answer.is_cut else answer.content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture(autouse=True)
def no_connections_are_left() -> Iterator[None]:
    """Those that broke off are collected here, and not in a test of somebody else's, where they would be a warning."""
    yield
    gc.collect()
    gc.freeze()  # so that the next time is short


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing of the user's is read or written: home, cache and token are in a folder of the test's."""
    for name in list(os.environ):
        if name.startswith("KAGGLE") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("NETRC", "TBE_RUNTIME_ADDR"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
    pytest.importorskip("kagglehub", reason="kagglehub is not installed: pip install samestep[kaggle]")
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(Kaggle())
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.stop()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)


def complaint(source: str, kind: type[SamestepError]) -> str:
    """The one line that a source gets."""
    with pytest.raises(kind) as info:
        kaggle.fetch(source)
    message = str(info.value)
    assert "\n" not in message and len(message) < 600
    assert type(info.value) is kind
    assert message.startswith(source), message
    return message


class TestNames:
    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            (DATA_SET, ("uciml", "iris", None, None)),
            (f"{DATA_SET}/deep/more.csv", ("uciml", "iris", None, "deep/more.csv")),
            (f"{DATA_SET}/versions/12", ("uciml", "iris", 12, None)),
            (f"{DATA_SET}/versions/12/a b.csv", ("uciml", "iris", 12, "a b.csv")),
            (f"{DATA_SET}/versions/new", ("uciml", "iris", None, "versions/new")),
            (COMPETITION, (None, "titanic", None, None)),
            (f"{COMPETITION}/train.csv", (None, "titanic", None, "train.csv")),
            (f"{COMPETITION}/versions/1", (None, "titanic", None, "versions/1")),
        ],
    )
    def test_what_is_wanted(self, source: str, expected: tuple[object, ...]) -> None:
        wanted = kaggle.parse(source)
        assert (wanted.owner, wanted.name, wanted.version, wanted.path) == expected
        assert kaggle.is_kaggle(source)

    def test_pages(self) -> None:
        assert kaggle.parse(f"{DATA_SET}/versions/3/x").page == "https://www.kaggle.com/datasets/uciml/iris"
        assert kaggle.parse(f"{COMPETITION}/x").page == "https://www.kaggle.com/competitions/titanic/data"

    def test_a_path_is_none_of_kaggles(self) -> None:
        assert not kaggle.is_kaggle("kaggle/train.csv")
        assert not kaggle.is_kaggle("./kaggle:titanic")

    @pytest.mark.parametrize(
        "names",
        [
            "", "titanic", "/iris", "uciml/", "uciml/iris/", "uciml//iris", "uciml/ir is", "../iris", "uciml/..",
            "uciml/.", "uciml/iris/../x", "uciml/iris/./x", "uciml/iris//etc/passwd", "uciml/iris/a\\..\\b",
            "uciml/iris/a\0b", "uciml/iris/a\nb", "competition", "competition/", "competition/titanic/../../x",
            "competitions/titanic", "datasets/uciml/iris", "c/titanic", "https://www.kaggle.com/datasets/uciml/iris",
        ],
    )  # fmt: skip
    def test_malformed(self, names: str) -> None:
        with pytest.raises(UsageError, match="write kaggle:OWNER/DATA-SET or kaggle:competition/NAME") as info:
            kaggle.fetch(f"kaggle:{names}")
        assert "\n" not in str(info.value)


def test_without_kagglehub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    message = complaint(DATA_SET, UsageError)
    assert "pip install samestep[kaggle]" in message
    assert "download it by hand from https://www.kaggle.com/datasets/uciml/iris, and give the file or folder" in message


class TestDataSets:
    def test_all_of_it(self, server: Server, cache: Path) -> None:
        folder = kaggle.fetch(DATA_SET)
        assert folder.is_relative_to(cache)
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert found == server.kaggle.files
        names = {"ownerSlug": "uciml", "datasetSlug": "iris"}
        assert server.kaggle.asked == [
            ("datasets.DatasetApiService/GetDataset", names),
            ("datasets.DatasetApiService/DownloadDataset", {**names, "datasetVersionNumber": 1}),
        ]
        assert server.kaggle.tokens == ["", ""]

    def test_a_tar_archive(self, server: Server) -> None:
        server.kaggle.archive = tarred(server.kaggle.files)
        assert (kaggle.fetch(DATA_SET) / "deep" / "more.csv").read_bytes() == b"z\n1\n"

    @pytest.mark.parametrize("is_zipping_files", [False, True])
    def test_one_file(self, server: Server, is_zipping_files: bool) -> None:
        server.kaggle.is_zipping_files = is_zipping_files
        path = kaggle.fetch(f"{DATA_SET}/deep/more.csv")
        assert (path.name, path.read_bytes()) == ("more.csv", b"z\n1\n")
        assert server.kaggle.asked[-1][1]["fileName"] == "deep/more.csv"

    def test_one_folder(self, server: Server) -> None:
        server.kaggle.listed = ["deep/more.csv"]
        folder = kaggle.fetch(f"{DATA_SET}/deep")
        assert [path.name for path in folder.iterdir()] == ["more.csv"]
        assert server.kaggle.asked[2][0] == "datasets.DatasetApiService/ListTreeDatasetFiles"

    def test_the_newest_version_or_the_one_that_is_named(self, server: Server) -> None:
        first = kaggle.fetch(DATA_SET)
        server.kaggle.version, server.kaggle.files = 2, {"train.csv": b"x,y\n3,1\n"}
        assert (kaggle.fetch(DATA_SET) / "train.csv").read_bytes() == b"x,y\n3,1\n"
        num_asked = len(server.kaggle.asked)
        assert kaggle.fetch(f"{DATA_SET}/versions/1") == first
        assert len(server.kaggle.asked) == num_asked

    def test_what_was_fetched_needs_no_network(self, server: Server) -> None:
        notices: list[str] = []
        table, more = f"{DATA_SET}/train.csv", f"{DATA_SET}/deep/more.csv"
        fetched = {}
        for version, sources in {1: (more, DATA_SET), 3: (table, DATA_SET), 12: (table,)}.items():
            server.kaggle.version = version
            fetched.update({source: kaggle.fetch(source, notices.append) for source in sources})
        assert notices == []
        server.stop()
        for source, version in ((DATA_SET, 3), (table, 12), (more, 1)):
            assert kaggle.fetch(source, notices.append) == fetched[source]
            assert notices.pop() == (
                f"{source}: Kaggle cannot be reached; version {version} is taken, which was fetched before"
            )
        assert "cannot be reached" in complaint(f"{DATA_SET}/other.csv", DataError)
        assert "cannot be reached" in complaint(f"{DATA_SET}/versions/2", DataError)

    def test_a_token_is_given_where_there_is_one(self, server: Server, token: None) -> None:
        kaggle.fetch(DATA_SET)
        assert server.kaggle.tokens == [f"Bearer {TOKEN}"] * 2


class TestCompetitions:
    def test_all_of_it(self, server: Server, cache: Path, token: None) -> None:
        folder = kaggle.fetch(COMPETITION)
        assert folder.is_relative_to(cache)
        assert (folder / "train.csv").read_bytes() == TABLE
        asked = ("competitions.CompetitionApiService/DownloadDataFiles", {"competitionName": "titanic"})
        assert server.kaggle.asked == [asked]
        assert server.kaggle.tokens == [f"Bearer {TOKEN}"]

    @pytest.mark.parametrize("is_zipping_files", [False, True])
    def test_one_file(self, server: Server, token: None, is_zipping_files: bool) -> None:
        server.kaggle.is_zipping_files = is_zipping_files
        assert kaggle.fetch(f"{COMPETITION}/train.csv").read_bytes() == TABLE
        names = {"competitionName": "titanic", "fileName": "train.csv"}
        assert server.kaggle.asked == [("competitions.CompetitionApiService/DownloadDataFile", names)]

    @pytest.mark.parametrize("is_in_file", [False, True])
    def test_a_token_of_the_older_kind(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_in_file: bool
    ) -> None:
        if is_in_file:
            (tmp_path / "config").mkdir()
            (tmp_path / "config" / "kaggle.json").write_text('{"username": "me", "key": "secret"}')
        else:
            monkeypatch.setenv("KAGGLE_USERNAME", "me")
            monkeypatch.setenv("KAGGLE_KEY", "secret")
        kaggle.fetch(COMPETITION)
        assert server.kaggle.tokens == [f"Basic {base64.b64encode(b'me:secret').decode()}"]

    def test_without_a_token(self, server: Server) -> None:
        message = complaint(COMPETITION, UsageError)
        assert "to a token only; get one at https://www.kaggle.com/settings, and put it into" in message
        assert server.kaggle.asked == []

    def test_what_was_fetched_needs_neither_network_nor_token(
        self, server: Server, token: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, everything = kaggle.fetch(f"{COMPETITION}/train.csv"), kaggle.fetch(COMPETITION)
        server.stop()
        assert kaggle.fetch(f"{COMPETITION}/train.csv") == one
        assert kaggle.fetch(COMPETITION) == everything
        monkeypatch.delenv("KAGGLE_API_TOKEN")
        assert kaggle.fetch(f"{COMPETITION}/train.csv") == one
        assert kaggle.fetch(COMPETITION) == everything
        assert (everything / "train.csv").read_bytes() == TABLE

    def test_newer_files_take_the_place_of_older_ones(self, server: Server, token: None) -> None:
        kaggle.fetch(COMPETITION)
        server.kaggle.files = {"train.csv": b"x,y\n9,9\n"}
        assert (kaggle.fetch(COMPETITION) / "train.csv").read_bytes() == TABLE
        server.kaggle.changed = "Fri, 01 Jan 2100 00:00:00 GMT"
        folder = kaggle.fetch(COMPETITION)
        assert [path.read_bytes() for path in folder.iterdir()] == [b"x,y\n9,9\n"]

    def test_a_newer_file_takes_the_place_of_an_older_one(self, server: Server, token: None) -> None:
        source = f"{COMPETITION}/train.csv"
        kaggle.fetch(source)
        server.kaggle.files = {"train.csv": b"x,y\n9,9\n"}
        assert kaggle.fetch(source).read_bytes() == TABLE
        server.kaggle.changed = "Fri, 01 Jan 2100 00:00:00 GMT"
        assert kaggle.fetch(source).read_bytes() == b"x,y\n9,9\n"

    def test_half_a_newer_file_is_not_taken_for_whole(
        self, server: Server, token: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # in the environment TEST the whole answer is read to be printed, before a byte of it goes to a file
        client = pytest.importorskip("kagglesdk.kaggle_http_client").KaggleHttpClient
        monkeypatch.setattr(client, "_print_response", lambda *_: None)
        source = f"{COMPETITION}/train.csv"
        kaggle.fetch(source)
        server.kaggle.changed = "Fri, 01 Jan 2100 00:00:00 GMT"
        server.kaggle.is_cut = True
        assert "the download broke off" in complaint(source, DataError)
        server.stop()
        assert "cannot be reached" in complaint(source, DataError)


SETTINGS = "https://www.kaggle.com/settings"
PAGE, DATA_PAGE = "https://www.kaggle.com/datasets/uciml/iris", "https://www.kaggle.com/competitions/titanic/data"
RULES = "https://www.kaggle.com/competitions/titanic/rules"
REFUSALS = [
    (
        DATA_SET,
        401,
        UsageError,
        f"Kaggle wants a token that is valid (HTTP 401); get one at {SETTINGS}, and put it into",
    ),
    (COMPETITION, 401, UsageError, f"a token that is valid (HTTP 401); get one at {SETTINGS}, and put it into"),
    (
        DATA_SET,
        403,
        UsageError,
        f"(HTTP 403): there is no such data set (check the spelling at {PAGE}), or it is private",
    ),
    (
        COMPETITION,
        403,
        UsageError,
        f"(HTTP 403) until the rules are accepted: sign in, accept them at {RULES}, and run",
    ),
    (DATA_SET, 404, UsageError, f"(HTTP 404); check the spelling at {PAGE}"),
    (COMPETITION, 404, UsageError, f"(HTTP 404); check the spelling at {DATA_PAGE}"),
    (
        DATA_SET,
        429,
        DataError,
        f"Kaggle answers with HTTP 429; run it again later, or download it by hand from {PAGE},",
    ),
    (f"{COMPETITION}/train.csv", 503, DataError, "Kaggle answers with HTTP 503; run it again later, or download it"),
]


class TestFailures:
    @pytest.mark.parametrize("in_content_only", [False, True])
    @pytest.mark.parametrize(("source", "status", "kind", "text"), REFUSALS)
    def test_refused(
        self,
        server: Server,
        token: None,
        source: str,
        status: int,
        kind: type[SamestepError],
        text: str,
        in_content_only: bool,
    ) -> None:
        server.kaggle.instead = refusal(status, in_content_only=in_content_only)
        message = complaint(source, kind)
        assert text in message and TOKEN not in message

    @pytest.mark.parametrize("source", [f"{DATA_SET}/none.csv", f"{COMPETITION}/none.csv"])
    def test_no_such_file(self, server: Server, token: None, source: str) -> None:
        assert "check the spelling at" in complaint(source, UsageError)

    @pytest.mark.parametrize(
        ("source", "page"),
        [(DATA_SET, PAGE), (f"{COMPETITION}/train.csv", DATA_PAGE)],
    )
    def test_nobody_listens(self, server: Server, token: None, source: str, page: str) -> None:
        server.stop()
        assert complaint(source, DataError) == (
            f"{source}: Kaggle cannot be reached (Connection refused); download it by hand from {page}, and give the "
            "file or folder with --data"
        )

    @pytest.mark.parametrize("source", [DATA_SET, COMPETITION, f"{DATA_SET}/train.csv"])
    def test_cut_short(self, server: Server, token: None, source: str) -> None:
        server.kaggle.is_cut = True
        assert "the download broke off (" in complaint(source, DataError)
        server.kaggle.is_cut = False
        assert kaggle.fetch(source).exists()

    @pytest.mark.parametrize("source", [DATA_SET, COMPETITION])
    @pytest.mark.parametrize("kind", ["no archive", "half an archive", "a wrong byte", "a wrong hash", "half a tar"])
    def test_damaged(self, server: Server, token: None, source: str, kind: str) -> None:
        whole = zipped(server.kaggle.files)
        damaged = {
            "no archive": b"x" * len(whole),
            "half an archive": whole[: len(whole) // 2] + b"\0" * (len(whole) - len(whole) // 2),
            "a wrong byte": whole.replace(b"2,1", b"2,7", 1),
            "half a tar": tarred(server.kaggle.files)[:-30],
        }
        server.kaggle.archive = damaged.get(kind, whole)
        if kind == "a wrong hash":
            digest = base64.b64encode(hashlib.md5(b"other").digest()).decode()
            server.kaggle.headers = {"x-goog-hash": f"crc32c=AAAAAA==,md5={digest}"}
        assert "is damaged, or not what was asked for (" in complaint(source, DataError)
        server.kaggle.archive, server.kaggle.headers = whole, {}
        assert (kaggle.fetch(source) / "train.csv").read_bytes() == TABLE

    def test_somebody_else_answers(self, server: Server) -> None:
        server.kaggle.instead = Answer(b"<html>Welcome to our hotel</html>", headers={"Content-Type": "text/html"})
        assert "not what was asked for" in complaint(DATA_SET, DataError)

    def test_an_impossible_version(self, server: Server, cache: Path) -> None:
        server.kaggle.instead = as_json({"currentVersionNumber": "../../../x"})
        assert "not what was asked for" in complaint(DATA_SET, DataError)
        assert not cache.exists()

    @pytest.mark.parametrize("source", [DATA_SET, f"{COMPETITION}/train.csv"])
    def test_no_place_for_the_cache(self, server: Server, token: None, cache: Path, source: str) -> None:
        cache.write_text("a file")
        message = complaint(source, DataError)
        assert f"cannot be kept in {cache} (" in message
        assert "KAGGLEHUB_CACHE names another folder" in message

    def test_a_token_that_cannot_be_read(self, server: Server, tmp_path: Path) -> None:
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "kaggle.json").write_text('{"username": "me", "key": "s3cret"')
        message = complaint(COMPETITION, UsageError)
        assert "the token cannot be read" in message and "kaggle.json" in message and "s3cret" not in message


class TestNamesFromTheNetwork:
    """None leads out of the folder of the data set."""

    @pytest.fixture(autouse=True)
    def nothing_outside(self, server: Server, tmp_path: Path, cache: Path) -> Iterator[None]:
        yield
        outside = [path for path in tmp_path.rglob("*evil*") if not path.is_relative_to(cache / "datasets/uciml/iris")]
        assert outside == []

    @pytest.mark.parametrize("name", [EVIL, "/evil.csv", "deep/../../evil.csv"])
    def test_in_a_zip_archive(self, server: Server, name: str) -> None:
        server.kaggle.archive = zipped({"train.csv": TABLE, name: b"evil"})
        folder = kaggle.fetch(DATA_SET)
        assert [path.read_bytes() for path in folder.rglob("evil.csv")] == [b"evil"]

    @pytest.mark.parametrize("archive", [tarred({"train.csv": TABLE, EVIL: b"evil"}), linked()])
    def test_in_a_tar_archive(self, server: Server, archive: bytes) -> None:
        server.kaggle.archive = archive
        assert "is damaged, or not what was asked for (" in complaint(DATA_SET, DataError)

    @pytest.mark.parametrize("name", [EVIL, "/evil.csv", f"deep/{EVIL}", "other/evil.csv"])
    def test_in_a_folder(self, server: Server, name: str) -> None:
        server.kaggle.listed = [name]
        assert "is damaged, or not what was asked for (" in complaint(f"{DATA_SET}/deep", DataError)


class TestStdout:
    def test_it_stays_clean(self, server: Server, token: None) -> None:
        """kagglehub logs to stdout, prints there that it is old, and in the environment TEST all that it sends."""
        program = (
            "import json, sys, kagglehub; from samestep.data import kaggle; "
            "print(json.dumps(str(kaggle.fetch(sys.argv[1]))))"
        )
        finished = subprocess.run(
            [sys.executable, "-c", program, DATA_SET], capture_output=True, text=True, check=True, timeout=60
        )
        lines = finished.stdout.splitlines()
        assert len(lines) == 1
        assert (Path(json.loads(lines[0])) / "train.csv").read_bytes() == TABLE

    def test_what_is_others_is_left_as_it_was(self, server: Server) -> None:
        logger, stdout = logging.getLogger("kagglehub"), sys.stdout
        before = (set(logger.handlers), logger.level, logger.propagate)
        kaggle.fetch(DATA_SET)
        server.stop()
        complaint(f"{DATA_SET}/versions/9", DataError)
        assert (set(logger.handlers), logger.level, logger.propagate) == before
        assert before[0]
        assert sys.stdout is stdout


class TestTraining:
    """From Kaggle's name to a trained network, by the command that a user gives."""

    ROWS = b"x,y\n" + b"".join(b"%d,%d\n" % (7 * number % 31, number % 2) for number in range(200))

    @pytest.fixture(autouse=True)
    def packs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "packs"))

    def trained(self, capsys: pytest.CaptureFixture[str], source: str) -> tuple[str, str]:
        """The digest of the weights, and what was said."""
        words = ["train", "--data", source, "--target", "y", "--steps", "3", "--workers", "1", "--json"]
        assert main(words) == 0
        said = capsys.readouterr()
        digest: str = json.loads(said.out)["weights_sha256"]
        return digest, said.err

    def test_a_data_set(self, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        server.kaggle.files = {"train.csv": self.ROWS}
        digest, _ = self.trained(capsys, DATA_SET)
        downloads = [what for what, _ in server.kaggle.asked if "Download" in what]
        assert len(downloads) == 1
        assert len(server.kaggle.asked) == 2, "for the newest version, and for its files"
        (tmp_path / "train.csv").write_bytes(self.ROWS)
        assert self.trained(capsys, str(tmp_path / "train.csv"))[0] == digest
        server.stop()
        again, said = self.trained(capsys, DATA_SET)
        assert again == digest
        assert "version 1" in said, "it is told that nobody has looked for a newer one"

    def test_a_pack_of_a_competition(self, server: Server, token: None, tmp_path: Path) -> None:
        server.kaggle.files = {"train.csv": self.ROWS, "test.csv": b"x\n1\n"}
        assert main(["pack", COMPETITION, str(tmp_path / "packed"), "--target", "y"]) == 0
        assert reader.open_pack(tmp_path / "packed").manifest.num_samples("train") > 100
