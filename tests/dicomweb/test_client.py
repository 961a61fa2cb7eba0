"""The connection to a DICOMweb server: certificates, credentials, pages, and what comes of a store."""

import datetime
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from medclipsam.base.errors import OptionError, UpstreamError
from medclipsam.dicomweb.client import Credentials, Pacs
from medclipsam.dicomweb.options import PacsOptions

# Answers a method, path and query with a status, headers and a body.
Answer = Callable[[str, str, dict[str, list[str]]], tuple[int, dict[str, str], bytes]]


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[str, list[tuple[str, dict[str, str]]]]]]:
    """Start a server; returns its address and what it was asked."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer, certificate: Path | None = None) -> tuple[str, list[tuple[str, dict[str, str]]]]:
        asked: list[tuple[str, dict[str, str]]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                asked.append((self.path, dict(self.headers)))
                where = urlsplit(self.path)
                status, headers, body = answer(self.command, where.path, parse_qs(where.query))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}/dicom-web", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _nothing(method: str, path: str, query: dict[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/dicom+json"}, b"[]"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that vouches for itself, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pacs")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = tmp_path / "pacs.pem"
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return file


def test_certificates_are_checked(serve: Callable[..., tuple[str, list[object]]], certificate: Path) -> None:
    url, asked = serve(_nothing, certificate)
    with pytest.raises(UpstreamError, match=r"not trusted .*pacs_ca_file"):
        Pacs(url, PacsOptions(retries=0), Credentials("reader", "secret")).search("studies", {})
    assert asked == []
    own = PacsOptions(ca_file=str(certificate.with_name("ca.pem")))
    assert Pacs(url, own).search("studies", {}) == []


def test_credentials_in_the_address_are_used_and_shown_nowhere(
    serve: Callable[..., tuple[str, list[tuple[str, dict[str, str]]]]],
) -> None:
    url, asked = serve(_nothing)
    pacs = Pacs(url.replace("//", "//reader:s%40cret@"), None, Credentials("another", "x"))
    pacs.search("studies", {})
    assert asked[-1][1]["Authorization"] == Credentials("reader", "s@cret").header()
    assert "reader" not in pacs.url
    assert "s@cret" not in repr(Credentials("reader", "s@cret"))


def test_neither_proxies_nor_netrc_of_the_environment_are_used(
    serve: Callable[..., tuple[str, list[tuple[str, dict[str, str]]]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    url, asked = serve(_nothing)
    Pacs(url).search("studies", {})
    assert "Authorization" not in asked[-1][1]


@pytest.mark.parametrize("ignores_offset", [False, True])
def test_a_long_list_is_asked_for_page_by_page(
    serve: Callable[..., tuple[str, list[tuple[str, dict[str, str]]]]], ignores_offset: bool
) -> None:
    entries = [{"0020000E": {"vr": "UI", "Value": [f"1.2.{number}"]}} for number in range(1500)]

    def page(method: str, path: str, query: dict[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
        begin = 0 if ignores_offset else int(query["offset"][0])
        return 200, {}, json.dumps(entries[begin : begin + int(query["limit"][0])]).encode()

    url, asked = serve(page)
    found = Pacs(url).search("series", {"Modality": "CT"})
    assert len(found) == len({str(each.SeriesInstanceUID) for each in found}) == (1000 if ignores_offset else 1500)
    assert len(asked) == 2


OURS, OTHER = "1.2.3.4", "1.2.3.5"


def _named(sequence: str, instance: str) -> bytes:
    items = [{"00081155": {"vr": "UI", "Value": [instance]}}]
    return json.dumps({sequence: {"vr": "SQ", "Value": items}}).encode()


# Status and body of the answer to a store; whether the answer alone says that the label is stored or that it is not,
# None where the server must be searched.
STORES: dict[str, tuple[int, bytes, bool | None]] = {
    "named": (200, _named("00081199", OURS), True),
    "named in a list": (202, b"[" + _named("00081199", OURS) + b"]", True),
    "named as failed": (202, _named("00081198", OURS), False),
    "named as both": (
        200,
        json.dumps({**json.loads(_named("00081199", OURS)), **json.loads(_named("00081198", OURS))}).encode(),
        False,
    ),
    "conflict": (409, b"", False),
    "bad request": (400, b"no", False),
    "another is named": (200, _named("00081199", OTHER), None),
    "another has failed": (200, _named("00081198", OTHER), None),
    "a failure without a name": (200, b'{"00081198": {"vr": "SQ", "Value": [{}]}}', None),
    "empty object": (200, b"{}", None),
    "nothing": (200, b"", None),
    "no content": (204, b"", None),
    "empty list": (200, b"[]", None),
    "list of lists": (200, b"[[1, 2]]", None),
    "odd values": (200, b'{"00081199": {"Value": 3}, "00081198": {"Value": {"00081155": 4}}}', None),
    "a number": (200, b"7", None),
    "null": (200, b"null", None),
    "deeply nested": (200, 100_000 * b"[", None),
    "cut off": (200, b'{"00081199": {"vr": "SQ"', None),
    "a web page": (200, b"<html>welcome</html>", None),
    "XML with a failure": (200, b'<NativeDicomModel><DicomAttribute keyword="FailedSOPSequence"/>', None),
    "not UTF-8": (200, b"\xff\xfe{}", None),
    "an error": (500, b"", None),
    "too busy": (503, b"", None),
    "disk full": (507, b"", None),
}


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("case", STORES)
def test_a_label_is_stored_where_the_answer_or_the_servers_list_names_it(
    serve: Callable[..., tuple[str, list[tuple[str, dict[str, str]]]]], case: str, listed: bool
) -> None:
    status, body, said = STORES[case]

    def answer(method: str, path: str, query: dict[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
        if method == "POST":
            return status, {}, body
        found = [OTHER, OURS] if listed else [OTHER]
        return 200, {}, json.dumps([{"00080018": {"vr": "UI", "Value": [name]}} for name in found]).encode()

    url, asked = serve(answer)
    pacs = Pacs(url, PacsOptions(retries=0))
    if said or (said is None and listed):
        pacs.store(b"DICM", "1.2", "1.3", OURS)
    else:
        with pytest.raises(UpstreamError) as error:
            pacs.store(b"DICM", "1.2", "1.3", OURS)
        assert error.value.permanent is (said is False)
    searched = [path for path, _ in asked if "/series/1.3/instances" in path]
    assert bool(searched) is (said is None)


def test_a_store_is_searched_for_until_it_appears(
    serve: Callable[..., tuple[str, list[tuple[str, dict[str, str]]]]],
) -> None:
    answers = [b"[]", json.dumps([{"00080018": {"vr": "UI", "Value": [OURS]}}]).encode()]

    def answer(method: str, path: str, query: dict[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
        return (200, {}, b"") if method == "POST" else (200, {}, answers.pop(0))

    url, _ = serve(answer)
    Pacs(url, PacsOptions(retries=1)).store(b"DICM", "1.2", "1.3", OURS)
    assert answers == []


@pytest.mark.filterwarnings("error")
def test_bulk_data_are_left_where_they_are(
    serve: Callable[..., tuple[str, list[object]]], caplog: pytest.LogCaptureFixture
) -> None:
    item = {"00282000": {"vr": "OB", "BulkDataURI": "http://elsewhere/profile"}}
    entry = {
        "00080018": {"vr": "UI", "Value": ["1.2.3"]},
        "00480105": {"vr": "SQ", "Value": [item]},
        "7FE00010": {"vr": "OW", "BulkDataURI": "http://elsewhere/pixels"},
    }
    url, asked = serve(lambda method, path, query: (200, {}, json.dumps([entry]).encode()))
    [data] = Pacs(url).metadata("1", "2")
    assert data.SOPInstanceUID == "1.2.3"
    assert not data.PixelData
    assert not data.OpticalPathSequence[0].ICCProfile
    assert len(asked) == 1
    assert not caplog.records


def test_services_may_lie_in_places_of_their_own(
    serve: Callable[..., tuple[str, list[tuple[str, dict[str, str]]]]],
) -> None:
    url, asked = serve(_nothing)
    pacs = Pacs(url + "/", None, None, {"qido": "/qido-rs/", "wado": None})
    pacs.search("series", {})
    pacs.metadata("1.2", "1.3")
    assert [urlsplit(path).path for path, _ in asked] == [
        "/dicom-web/qido-rs/series",
        "/dicom-web/studies/1.2/series/1.3/metadata",
    ]


def test_a_user_and_a_token_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="not both"):
        Credentials.from_environment(
            environment={"MONAI_LABEL_DICOMWEB_USERNAME": "reader", "MEDCLIPSAM_PACS_TOKEN": "t"}
        )
    given = Credentials.from_environment(environment={"MEDCLIPSAM_PACS_TOKEN": " abc "})
    assert given.header() == "Bearer abc"
    with pytest.raises(UpstreamError, match="token file cannot be read"):
        Credentials(token_file=str(tmp_path / "gone")).header()


def test_a_large_archive_is_listed_page_by_page(
    serve: Callable[..., tuple[str, list[tuple[str, dict[str, str]]]]],
) -> None:
    series = [{"0020000E": {"vr": "UI", "Value": [f"1.2.{number}"]}} for number in range(2300)]

    def answer(method: str, path: str, query: dict[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
        begin, count = int(query["offset"][0]), int(query["limit"][0])
        return 200, {"Content-Type": "application/dicom+json"}, json.dumps(series[begin : begin + count]).encode()

    url, asked = serve(answer)
    pages = Pacs(url).search_pages("series", {"Modality": "CT"})
    first = next(pages)
    assert len(asked) == 1
    rest = list(pages)
    assert [len(page) for page in (first, *rest)] == [1000, 1000, 300]
    found = [str(entry.SeriesInstanceUID) for page in (first, *rest) for entry in page]
    assert found == [f"1.2.{number}" for number in range(2300)]
