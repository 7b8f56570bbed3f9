"""Who vouches for a version: signatures with people's own keys over the hashes of its files.

A signature is what OpenSSF's model signing 1.0 writes, so that its tool checks ours too: a Sigstore
bundle with the signer's certificate and a DSSE envelope, in which an in-toto statement lists each
file with its sha256. The statement's subject is the version ("digits/3"): a signature of one is none
of another. Signatures are tags of the version, one for each signer's key.

Whose certificate counts is a matter of `trust.Trust`. Importing this module is cheap.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import AccessError, ClusterError, ConflictError, UsageError
from ..schema import Struct
from .names import TAG

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.x509 import Certificate

    from ..tls import Bundle
    from .trust import Trust

SIGNED = f"{TAG}signed."
_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_SERIALIZATION = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
_LONGEST_NAME = 64
# What a cluster's authority signs besides people.
_MACHINES = ("authority", "broker", "dask", "endpoint", "node")


class Standing(StrEnum):
    """What a signature is worth here."""

    KNOWN = "known"
    """It fits the version, and its signer is known here."""
    UNKNOWN = "unknown"
    """It fits the version; who made it is nobody known here."""
    BROKEN = "broken"
    """It does not fit the version."""


class SignedBy(Struct):
    """A signature of a version: who made it by its certificate, and why it is not worth more."""

    name: str
    role: str = ""
    standing: Standing = Standing.KNOWN
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.name}, {self.problem}" if self.problem else self.name


class _Camel(msgspec.Struct, rename="camel"):
    """Named as Sigstore's JSON has it."""


class _Certificate(_Camel):
    raw_bytes: bytes


class _Chain(_Camel):
    certificates: tuple[_Certificate, ...]


class _Material(_Camel):
    x509_certificate_chain: _Chain
    tlog_entries: tuple[Any, ...] = ()


class _Signature(_Camel):
    sig: bytes
    keyid: str = ""


class _Envelope(_Camel):
    payload: bytes
    payload_type: str
    signatures: tuple[_Signature, ...]


class _Bundle(_Camel):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


class _Resource(msgspec.Struct):
    name: str
    algorithm: str
    digest: str


class _Subject(msgspec.Struct):
    name: str
    digest: dict[str, str]


class _Predicate(msgspec.Struct):
    serialization: dict[str, Any]
    resources: tuple[_Resource, ...]


class _Statement(msgspec.Struct):
    type: str = msgspec.field(name="_type")
    subject: tuple[_Subject, ...]
    predicate_type: str = msgspec.field(name="predicateType")
    predicate: _Predicate


class Signer:
    """A person who signs, with their key and certificate.

    Raises
    ------
    ClusterError
        They cannot be read, or do not belong together.
    """

    def __init__(self, bundle: Bundle) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(bundle.key.read_bytes(), password=None)
            self._certificate = x509.load_pem_x509_certificate(bundle.certificate.read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise ClusterError(
                f"Your key and certificate in {bundle.key.parent} cannot be read ({error}); nothing "
                "can be signed without them."
            ) from error
        if (
            not isinstance(key, ec.EllipticCurvePrivateKey)
            or key.public_key() != self._certificate.public_key()
        ):
            raise ClusterError(
                f"The key {bundle.key} is not the one of the certificate {bundle.certificate}; ask for "
                "a new bundle."
            )
        self._key = key

    def sign(self, ref: str, files: Mapping[str, str]) -> tuple[str, str]:
        """The tag that says that this person vouches for a version's files: its name and value.

        Raises
        ------
        UsageError
            No hashes of its files are known.
        """
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding

        if not files:
            raise UsageError(
                f"{ref} was registered without hashes of its files, so that there is nothing to sign; "
                "publish it with aios publish."
            )
        payload = msgspec.json.encode(_statement(ref, files))
        hashed = _hash_of(self._key.public_key())
        envelope = _Envelope(
            payload=payload,
            payload_type=_PAYLOAD,
            signatures=(_Signature(sig=self._key.sign(_encoded(payload), ec.ECDSA(hashed))),),
        )
        own = self._certificate.public_bytes(Encoding.DER)
        material = _Material(
            x509_certificate_chain=_Chain(certificates=(_Certificate(raw_bytes=own),))
        )
        bundle = _Bundle(media_type=_BUNDLE, verification_material=material, dsse_envelope=envelope)
        return f"{SIGNED}{hashlib.sha256(own).hexdigest()[:16]}", msgspec.json.encode(
            bundle
        ).decode()


def signatures(
    ref: str,
    files: Mapping[str, str],
    tags: Mapping[str, str],
    trust: Trust,
    now: float | None = None,
) -> tuple[SignedBy, ...]:
    """Who has signed a version, by its tags and the hashes that are recorded for its files."""
    at = time.time() if now is None else now
    return tuple(_read(text, ref, files, trust, at) for text in bundles(tags))


def bundles(tags: Mapping[str, str]) -> list[str]:
    """The signatures in a version's tags, each as other tools take it in a file."""
    return [tags[key] for key in sorted(tags) if key.startswith(SIGNED)]


def check(ref: str, signed: Sequence[SignedBy], *, required: bool) -> None:
    """Refuse a version whose signatures do not hold, or with `required` one nobody known has signed.

    Raises
    ------
    ConflictError
        A signature does not fit the version.
    AccessError
        Nobody known here has signed it.
    """
    for one in signed:
        if one.standing is Standing.BROKEN:
            raise ConflictError(
                f"The signature of {one.name} on {ref} does not hold: {one.problem}. Do not use it; "
                "publish the model again, signed."
            )
    if not required or any(one.standing is Standing.KNOWN for one in signed):
        return
    by = "; ".join(map(str, signed))
    said = f"is signed by {by}" if signed else "is not signed"
    raise AccessError(
        f"{ref} {said}, and only versions that somebody known here has signed may be used; have it "
        f"signed with: aios models sign {ref}."
    )


def _statement(ref: str, files: Mapping[str, str]) -> _Statement:
    ordered = [_Resource(name, "sha256", files[name]) for name in sorted(files)]
    return _Statement(
        type=_STATEMENT,
        subject=(_Subject(ref, {"sha256": _root(ordered)}),),
        predicate_type=_PREDICATE,
        predicate=_Predicate(dict(_SERIALIZATION), tuple(ordered)),
    )


def _root(resources: Sequence[_Resource]) -> str:
    """One hash of all files' hashes."""
    return hashlib.sha256(b"".join(bytes.fromhex(one.digest) for one in resources)).hexdigest()


def _encoded(payload: bytes) -> bytes:
    """What DSSE signs: the payload with its type and length before it."""
    return b"DSSEv1 %d %b %d %b" % (len(_PAYLOAD), _PAYLOAD.encode(), len(payload), payload)


def _hash_of(key: EllipticCurvePublicKey) -> Any:
    from cryptography.hazmat.primitives import hashes

    by_size: dict[int, type[Any]] = {256: hashes.SHA256, 384: hashes.SHA384, 521: hashes.SHA512}
    return by_size[key.key_size]()


def _read(text: str, ref: str, files: Mapping[str, str], trust: Trust, now: float) -> SignedBy:
    from cryptography import x509

    try:
        bundle = msgspec.json.decode(text, type=_Bundle)
        first = bundle.verification_material.x509_certificate_chain.certificates[0]
        leaf = x509.load_der_x509_certificate(first.raw_bytes)
        name, role = _person(leaf)
    except (msgspec.DecodeError, ValueError, IndexError):
        return SignedBy(name="somebody", standing=Standing.BROKEN, problem="it cannot be read")
    if wrong := _unfit(bundle, leaf, ref, files):
        return SignedBy(name=name, role=role, standing=Standing.BROKEN, problem=wrong)
    if why := _unknown(leaf, role, trust, now):
        return SignedBy(name=name, role=role, standing=Standing.UNKNOWN, problem=why)
    return SignedBy(name=name, role=role)


def _person(leaf: Certificate) -> tuple[str, str]:
    """Name and role in a certificate, which may be anybody's: short, and of letters one can see."""
    from cryptography.x509.oid import NameOID

    def first(kind: Any) -> str:
        found = [str(each.value) for each in leaf.subject.get_attributes_for_oid(kind)]
        return "".join(c for c in "".join(found[:1]) if c.isprintable())[:_LONGEST_NAME]

    return first(NameOID.COMMON_NAME) or "somebody", first(NameOID.ORGANIZATIONAL_UNIT_NAME)


def _unfit(bundle: _Bundle, leaf: Certificate, ref: str, files: Mapping[str, str]) -> str:
    """Why a signature is none of this version; "" where it is one."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec

    envelope = bundle.dsse_envelope
    key = leaf.public_key()
    if bundle.media_type != _BUNDLE or envelope.payload_type != _PAYLOAD:
        return "it is of a kind that is not known here"
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.key_size not in (256, 384, 521):
        return "it was made with a kind of key that is not known here"
    if len(envelope.signatures) != 1:
        return "it is not one signature"
    try:
        key.verify(envelope.signatures[0].sig, _encoded(envelope.payload), ec.ECDSA(_hash_of(key)))
        said = msgspec.json.decode(envelope.payload, type=_Statement)
    except InvalidSignature:
        return "it was changed, or made with another key than its certificate's"
    except msgspec.DecodeError:
        return "what it signs cannot be read"
    return _says_otherwise(said, ref, files)


def _says_otherwise(said: _Statement, ref: str, files: Mapping[str, str]) -> str:
    if said.type != _STATEMENT or said.predicate_type != _PREDICATE:
        return "it is of a kind that is not known here"
    if [one.name for one in said.subject] != [ref]:
        return "it is another version's"
    resources = said.predicate.resources
    if any(one.algorithm != "sha256" for one in resources):
        return "it is of a kind that is not known here"
    signed = {one.name: one.digest for one in resources}
    if signed != files or len(signed) != len(resources):
        names = sorted({name for name, _ in signed.items() ^ files.items()})
        return f"other files were signed than are recorded ({', '.join(names[:3])})"
    try:
        same = said.subject == _statement(ref, files).subject
    except ValueError:
        same = False
    return "" if same else "its hashes are not in order"


def _unknown(leaf: Certificate, role: str, trust: Trust, now: float) -> str:
    """Why a signer is nobody who is known here; "" where they are known."""
    if not any(_vouches(known, leaf) for known in _certificates(trust)):
        return f"whose authority is not known here ({_authority(leaf)})"
    if role in _MACHINES:
        return f"which is no person but a certificate for {role}"
    if leaf.serial_number in {int(serial, 16) for serial in trust.revoked}:
        return "whose access was revoked"
    ends = leaf.not_valid_after_utc
    if not leaf.not_valid_before_utc.timestamp() <= now <= ends.timestamp():
        return f"whose certificate ended on {ends:%Y-%m-%d}"
    return _not_for_signing(leaf)


def _certificates(trust: Trust) -> Iterator[Certificate]:
    from cryptography import x509

    for text in trust.authorities:
        try:
            yield from x509.load_pem_x509_certificates(text.encode())
        except ValueError as error:
            raise UsageError(
                f"A certificate of those whose signatures count cannot be read ({error}); see "
                "AIOS_SIGNERS and the cluster's ca.pem."
            ) from error


def _vouches(known: Certificate, leaf: Certificate) -> bool:
    """Whether a certificate that is trusted is this one, or an authority that has signed it."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    if known == leaf:
        return True
    try:
        signs = known.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        leaf.verify_directly_issued_by(known)
    except (x509.ExtensionNotFound, ValueError, TypeError, InvalidSignature):
        return False
    return signs


def _authority(leaf: Certificate) -> str:
    """How an authority that nobody knows is told from others: by its key, not by what it says."""
    from cryptography import x509

    try:
        own = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except (x509.ExtensionNotFound, ValueError):
        return "it gives no key"
    key = own.key_identifier
    return f"key {key.hex()[:16]}" if key else "it gives no key"


def _not_for_signing(leaf: Certificate) -> str:
    from cryptography import x509

    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return ""  # what says nothing about its use may be used for anything
    return "" if usage.digital_signature else "whose certificate is not for signatures"
