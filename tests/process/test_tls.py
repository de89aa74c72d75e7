"""foreman on a TLS endpoint of Twisted's."""

import datetime
import ipaddress
import signal
import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from processes import LINE, EndlessTarget, connect, post, started


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 and its key, in one file each."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return tmp_path / "cert.pem"


def secure(port: int, certificate: Path) -> ssl.SSLSocket:
    """A TLS connection that offers HTTP/2 as well, as curl does."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context.wrap_socket(connect(port), server_hostname="127.0.0.1")


def read_all(client: socket.socket) -> bytes:
    """Everything up to the end, clean or not."""
    pieces = []
    try:
        while piece := client.recv(65536):
            pieces.append(piece)
    except ssl.SSLEOFError:
        pass
    return b"".join(pieces)


def test_tls(certificate: Path, tmp_path: Path) -> None:
    """Answers, streams, refusals in the middle of a body, and the stop: as without TLS."""
    address = f"ssl:0:interface=127.0.0.1:privateKey={tmp_path / 'key.pem'}:certKey={certificate}"
    with (
        EndlessTarget() as target,
        started(
            "twistd -n foreman",
            tmp_path,
            ADDR=address,
            OLLAMA_URL=target.url,
            BODY_LIMIT="100000",
            STOP_GRACE="1s",
        ) as daemon,
    ):
        with secure(daemon.port, certificate) as client:
            assert client.selected_alpn_protocol() in (None, "http/1.1")
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            assert read_all(client).startswith(b"HTTP/1.1 200 OK\r\n")
        with secure(daemon.port, certificate) as client:
            client.sendall(post("/api/chat", b"x" * 100_001))
            assert read_all(client).startswith(b"HTTP/1.1 413 ")
        with secure(daemon.port, certificate) as client:
            client.sendall(post("/api/generate"))
            received = b""
            while LINE not in received:
                received += client.recv(65536)
            daemon.signal(signal.SIGTERM)
            rest = read_all(client)
            assert b'{"error":"foreman is stopping; send the request again in a moment"}\n' in rest
            assert not rest.endswith(b"0\r\n\r\n")
        daemon.wait()
        assert "Traceback" not in daemon.text(), daemon.text()
