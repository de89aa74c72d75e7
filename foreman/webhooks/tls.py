"""TLS towards receivers: which authorities are trusted, and what is wrong with a certificate, in words."""

from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from attrs import define, field
from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity import CertificateError, VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import CertificateOptions, platformTrust
from zope.interface import implementer

_CODES = SSL.X509VerificationCodes
_UNKNOWN_AUTHORITY = (
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT,
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
    _CODES.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE,
    _CODES.ERR_SELF_SIGNED_CERT_IN_CHAIN,
    _CODES.ERR_CERT_SIGNATURE_FAILURE,  # an authority of the same name is trusted, with another key
)


class TlsRefused(Exception):
    """There is no TLS, or not with the right one. The text is one sentence."""


def read_ca(path: str) -> Sequence[x509.Certificate]:
    """
    The authorities in a file; none if there is no path.

    Raises ValueError, with what is wrong, for a file that cannot be read or holds no certificate.
    """
    if not path:
        return ()
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"the file {path} cannot be read: {error.strerror}") from None
    try:
        return x509.load_pem_x509_certificates(text)
    except ValueError:
        raise ValueError(f"the file {path} holds no certificate (PEM)") from None


@define(eq=False)
class Trust:
    """
    The authorities of this machine, and those in `more`.
    """

    _more: Sequence[x509.Certificate]
    _context: SSL.Context | None = field(default=None, init=False)

    def client(self, host: str) -> "TlsClient":
        """What verifies one connection to this host."""
        return TlsClient(self._shared_context(), host.removesuffix("."))

    def _shared_context(self) -> SSL.Context:
        # Made once, and not before it is needed: reading the machine's authorities takes 20 ms.
        if self._context is None:
            context = CertificateOptions(trustRoot=platformTrust()).getContext()
            store = context.get_cert_store()
            assert store is not None
            for certificate in self._more:
                store.add_cert(X509.from_cryptography(certificate))
            self._context = context
        return self._context


@implementer(IOpenSSLClientConnectionCreator)
@define(eq=False)
class TlsClient:
    """
    One TLS connection to `host`, a name or an address.

    twisted's own `optionsForClientTLS` verifies the same, but what OpenSSL found is lost in it: all that
    is left of an expired certificate is "certificate verify failed".
    """

    _context: SSL.Context
    _host: str
    complaint: str | None = None
    """What is wrong with the certificate: one sentence."""

    def clientConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        """Called by twisted when the connection is there."""
        connection = SSL.Connection(self._context, None)
        if not is_address(self._host):
            # Addresses are not sent as a server's name: RFC 6066, section 3.
            connection.set_tlsext_host_name(self._host.encode("ascii"))
        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._chain)
        return connection

    def _chain(self, _connection: SSL.Connection, found: X509, code: int, _depth: int, ok: int) -> bool:
        """Called by OpenSSL for each certificate, and each fault in one."""
        if not ok and self.complaint is None:
            self.complaint = _complaint(self._host, found.to_cryptography(), code)
        return bool(ok)

    def verified(self, connection: SSL.Connection) -> str:
        """
        What the handshake agreed on, for people. Raises TlsRefused when the certificate is another host's.

        OpenSSL has verified the chain and the dates by now, and nothing was sent yet.
        """
        try:
            if is_address(self._host):
                verify_ip_address(connection, self._host)
            else:
                verify_hostname(connection, self._host)
        except (VerificationError, CertificateError, ValueError):
            names = _names(connection)
            raise TlsRefused(f"the certificate is for {names}, not for {self._host}") from None
        found = connection.get_peer_certificate()
        assert found is not None
        until = found.to_cryptography().not_valid_after_utc
        version = connection.get_protocol_version_name()
        return f"{version}, certificate for {self._host} until {until:%Y-%m-%d}"

    def refusal(self, error: SSL.Error) -> TlsRefused:
        """Why a handshake failed: what is wrong with the certificate, or OpenSSL's own words."""
        errors: Any = error.args[0] if error.args else None
        said = f": {errors[-1][-1]}" if isinstance(errors, list) and errors else ""
        return TlsRefused(self.complaint or f"the TLS handshake with {self._host} failed{said}")


def _complaint(host: str, found: x509.Certificate, code: int) -> str:
    if code == _CODES.ERR_CERT_HAS_EXPIRED:
        return f"the certificate of {host} expired on {found.not_valid_after_utc:%Y-%m-%d}"
    if code == _CODES.ERR_CERT_NOT_YET_VALID:
        return f"the certificate of {host} is not valid before {found.not_valid_before_utc:%Y-%m-%d}"
    if code == _CODES.ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
        return f"the certificate of {host} is self-signed, and is not trusted on this machine"
    if code in _UNKNOWN_AUTHORITY:
        return f"the certificate of {host} is by an authority that is not trusted on this machine"
    return f"the certificate of {host} was not accepted (OpenSSL's verification error {code})"


def _names(connection: SSL.Connection) -> str:
    """The first names in the certificate that was presented."""
    found = connection.get_peer_certificate()
    if found is None:
        return "nobody"
    try:
        value = found.to_cryptography().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return "no name"
    names = [str(name.value) for name in value if isinstance(name, x509.DNSName | x509.IPAddress)]
    return ", ".join([*names[:3], "…"] if len(names) > 3 else names) or "no name"


def is_address(host: str) -> bool:
    """Whether this is an IP address as it is written usually, and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
