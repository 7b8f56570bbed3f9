"""A certificate authority for each cluster, and the TLS contexts made from it.

Who a peer is, is its certificate's common name; what it is, is the organizational unit: `broker`,
`node`, or a person's role (`admin`, `user`, `viewer`). Every connection is TLS 1.3, both sides show
a certificate, and a client checks that the server is a broker or a node: a user's certificate
cannot pass for one. Host names are not checked, as the authority signs for this cluster alone.

Whoever can reach a Dask port can run code there. So Dask's ports have an authority of their own
(`dask/`), which has signed one certificate for the cluster itself and whose key was never kept: the
certificate of a person opens the broker's and the agents' ports and no others.
"""

from __future__ import annotations

import datetime
import getpass
import ipaddress
import json
import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import AccessError, ClusterError

SERVER_ROLES = frozenset({"broker", "node"})
LIFETIME_DAYS = 3650


@dataclass(frozen=True)
class Bundle:
    """Paths of what one party shows and trusts."""

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def of(cls, directory: Path, party: str) -> Bundle:
        """The bundle of a party (`broker`, `node`, `user`) in a cluster's TLS directory."""
        return cls(directory / "ca.pem", directory / f"{party}.pem", directory / f"{party}.key")

    @classmethod
    def dask(cls, directory: Path) -> Bundle:
        """What opens Dask's ports, in a cluster's TLS directory."""
        return cls.of(directory / "dask", "dask")

    def server_context(self) -> ssl.SSLContext:
        """For a listening socket."""
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    def client_context(self) -> ssl.SSLContext:
        """For an outgoing connection."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, side: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(self.authority)
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ClusterError(
                f"The cluster's certificates in {self.authority.parent} cannot be read ({error}); "
                "run 'aios down' and 'aios up'."
            ) from error
        return context


class Revoked:
    """Certificates that no longer admit: a file in the TLS directory, read again when it changes.

    Parameters
    ----------
    directory
        The TLS directory. No file there means that nothing was revoked.
    """

    FILE = "revoked.json"

    def __init__(self, directory: Path) -> None:
        self._path = directory / self.FILE
        self._seen: tuple[int, int, int] | None = None
        self._serials: frozenset[int] = frozenset()

    def serials(self) -> frozenset[int]:
        """Serial numbers of what was revoked.

        Raises
        ------
        ClusterError
            The file cannot be read; nobody is to be admitted then.
        """
        try:
            facts = self._path.stat()
            seen = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
            if seen != self._seen:
                listed = json.loads(self._path.read_text())
                self._serials = frozenset(int(serial, 16) for serial in listed)
                self._seen = seen
        except FileNotFoundError:
            self._serials, self._seen = frozenset(), None
        except (OSError, ValueError, TypeError) as error:
            raise ClusterError(
                f"The list of revoked certificates {self._path} cannot be read ({error}); mend it, "
                "or make it anew with 'aios user revoke NAME' after moving it away."
            ) from error
        return self._serials

    def keep(self, serials: Iterable[str]) -> None:
        """Take over the list that the broker has, on a machine that does not share its directory.

        Nothing that was revoked is let in again by a list that lacks it.
        """
        told = {int(serial, 16) for serial in serials}
        if told <= self.serials():
            return
        aside = self._path.with_name(f".{self._path.name}-{os.getpid()}")
        aside.write_text(json.dumps([f"{serial:X}" for serial in sorted(told | self.serials())]))
        aside.replace(self._path)

    def check(self, name: str, serial: int) -> None:
        """Refuse a certificate that was revoked.

        Raises
        ------
        AccessError
            It was.
        """
        if serial in self.serials():
            raise AccessError(
                f"The access of {name} to this cluster was revoked; ask its owner for a new bundle."
            )


def peer(transport: Any) -> tuple[str, str, int]:
    """Name, role and serial number of the certificate that the other side of a transport shows."""
    certificate = transport.get_extra_info("peercert") or {}
    subject = dict(pair for part in certificate.get("subject", ()) for pair in part)
    name, role = subject.get("commonName", ""), subject.get("organizationalUnitName", "")
    if not name or not role:
        raise AccessError("The other side has shown no valid certificate of this cluster.")
    return name, role, int(certificate["serialNumber"], 16)


def create(directory: Path) -> None:
    """Make an authority and the parties of a one-user cluster: broker, node, this user as admin.

    `directory` must be private (0700); existing material is kept.
    """
    if not (directory / "dask" / "dask.pem").exists():
        _create_dask(directory / "dask")
    if (directory / "user.pem").exists():
        return
    from cryptography.hazmat.primitives.asymmetric import ec

    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    authority = _sign("AIOS cluster", "authority", key.public_key(), key, issuer=None)
    _write_key(directory / "ca.key", key)
    _write_certificate(directory / "ca.pem", authority)
    _issue(directory, "broker", "broker", "broker", key, authority)
    _issue(directory, "node", "node", "node", key, authority)
    _issue(directory, "user", getpass.getuser(), "admin", key, authority)


def _create_dask(directory: Path) -> None:
    create_closed(directory, "AIOS Dask", "dask", "dask")


def create_closed(directory: Path, title: str, party: str, role: str) -> Bundle:
    """An authority for one party alone, which both sides of a connection show to each other.

    Its key was never kept, so that nobody else can be admitted.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    authority = _sign(title, "authority", key.public_key(), key, issuer=None)
    _write_certificate(directory / "ca.pem", authority)
    _issue(directory, party, party, role, key, authority)
    return Bundle.of(directory, party)


def issue(
    directory: Path,
    party: str,
    name: str,
    role: str,
    *,
    to: Path | None = None,
    days: float = LIFETIME_DAYS,
) -> int:
    """Sign a certificate for one more party with the authority in `directory`.

    Parameters
    ----------
    to
        Where key and certificate go (default: `directory`).
    days
        How long it is valid.

    Returns
    -------
    int
        The certificate's serial number.

    Raises
    ------
    AccessError
        The authority's key is not here.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        data = (directory / "ca.key").read_bytes()
    except FileNotFoundError:
        raise AccessError(
            "The key that signs certificates is not here; do this on the machine and in the "
            "account that started the cluster."
        ) from None
    key = serialization.load_pem_private_key(data, password=None)
    authority = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
    return _issue(to or directory, party, name, role, key, authority, days)


def issue_endpoint(directory: Path, name: str, hosts: Iterable[str], to: Path) -> Path:
    """Sign a certificate for an HTTP endpoint, `NAME.pem` and `NAME.key` in `to`.

    Endpoints have an authority of their own below `directory`: what it signs opens no port of the
    cluster. Clients that trust it look at host names, so that the certificate has `hosts`.

    Returns
    -------
    Path
        The authority's certificate, which clients trust.

    Raises
    ------
    AccessError
        The cluster's authority is not here: neither is the right to speak for it.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if not (directory / "ca.key").exists():
        raise AccessError(
            "The cluster's key is not here, so that no certificate can be made for an endpoint; give "
            "one of your own with --certificate and --key."
        )
    own = directory / "endpoints"
    own.mkdir(exist_ok=True, mode=0o700)
    if not (own / "ca.pem").exists():
        new = ec.generate_private_key(ec.SECP256R1())
        _write_key(own / "ca.key", new)
        made = _sign("AIOS endpoints", "authority", new.public_key(), new, issuer=None)
        _write_certificate(own / "ca.pem", made)
    key = serialization.load_pem_private_key((own / "ca.key").read_bytes(), password=None)
    authority = x509.load_pem_x509_certificate((own / "ca.pem").read_bytes())
    _issue(to, name, name, "endpoint", key, authority, hosts=tuple(hosts))
    return own / "ca.pem"


def facts(certificate: Path) -> tuple[str, str, int, float]:
    """Name, role, serial number and end (epoch seconds) of a certificate in a file.

    Raises
    ------
    ValueError
        It is not a certificate of ours.
    """
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    read = x509.load_pem_x509_certificate(certificate.read_bytes())
    names = read.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    roles = read.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    if not names or not roles:
        raise ValueError("it names nobody")
    ends = read.not_valid_after_utc.timestamp()
    return str(names[0].value), str(roles[0].value), read.serial_number, ends


def _issue(
    directory: Path,
    party: str,
    name: str,
    role: str,
    signer: Any,
    issuer: Any,
    days: float = LIFETIME_DAYS,
    hosts: tuple[str, ...] = (),
) -> int:
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    _write_key(directory / f"{party}.key", key)
    certificate = _sign(name, role, key.public_key(), signer, issuer, days, hosts)
    _write_certificate(directory / f"{party}.pem", certificate)
    return int(certificate.serial_number)


def _sign(
    name: str,
    role: str,
    public_key: Any,
    signer: Any,
    issuer: Any,
    days: float = LIFETIME_DAYS,
    hosts: tuple[str, ...] = (),
) -> Any:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
        ]
    )
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    builder = builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False
    ).add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
    )
    builder = builder.add_extension(_usage(authority=issuer is None), critical=True)
    if hosts:
        builder = builder.add_extension(_names(hosts), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _usage(*, authority: bool) -> Any:
    """An authority signs certificates; everybody else what they say, in TLS and on models."""
    from cryptography import x509

    others = (
        "content_commitment key_encipherment data_encipherment key_agreement encipher_only "
        "decipher_only"
    )
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        **dict.fromkeys(others.split(), False),
    )


def _names(hosts: Iterable[str]) -> Any:
    from cryptography import x509

    found: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            found.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(found)


def _write_key(path: Path, key: Any) -> None:
    from cryptography.hazmat.primitives import serialization

    data = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _write_certificate(path: Path, certificate: Any) -> None:
    from cryptography.hazmat.primitives import serialization

    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
