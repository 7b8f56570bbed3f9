"""Whose signatures count: people of the cluster in use, and others that a setting names.

An endpoint may run where none of that is, so that it is told in `AIOS_TRUST`.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from ..cluster import bundle, embedded
from ..config import settings
from ..errors import ClusterError, UsageError
from ..schema import Struct
from ..tls import Bundle, Revoked

VARIABLE = "AIOS_TRUST"


class Trust(Struct):
    """Who is known, and whether what nobody known has signed is refused.

    Attributes
    ----------
    authorities
        Certificates (PEM) of authorities whose people are known, and of single people.
    revoked
        Serial numbers, in hexadecimal, of certificates that count no longer.
    required
        Refuse versions that nobody known has signed.
    """

    authorities: tuple[str, ...] = ()
    revoked: tuple[str, ...] = ()
    required: bool = False

    def requiring(self, required: bool) -> Trust:
        """The same, where a signature is required besides what is required already."""
        return msgspec.structs.replace(self, required=self.required or required)

    def as_environment(self) -> dict[str, str]:
        """What tells a process elsewhere."""
        return {VARIABLE: msgspec.json.encode(self).decode()}


def current() -> Trust:
    """By what this process was told, or by its settings and the files of the cluster in use.

    Raises
    ------
    UsageError
        A setting makes no sense.
    ClusterError
        The list of revoked certificates cannot be read.
    """
    if told := os.environ.get(VARIABLE):
        try:
            return msgspec.json.decode(told, type=Trust)
        except msgspec.DecodeError as error:
            raise UsageError(
                f"{VARIABLE} cannot be read ({error}); unset it, it is for endpoints."
            ) from error
    own = by_settings()
    directory = bundle.current() or embedded.Paths.current().tls
    return msgspec.structs.replace(
        own,
        authorities=(*_texts(directory / "ca.pem", optional=True), *own.authorities),
        revoked=tuple(f"{serial:X}" for serial in sorted(Revoked(directory).serials())),
    )


def by_settings() -> Trust:
    """What holds besides a cluster's own people and rules.

    Raises
    ------
    UsageError
        A setting makes no sense.
    """
    if settings().require_signature not in ("on", "off"):
        raise UsageError(
            f"AIOS_REQUIRE_SIGNATURE={settings().require_signature!r} is neither 'on' nor 'off'; "
            "correct or unset it."
        )
    return Trust(authorities=tuple(_others()), required=settings().require_signature == "on")


def own_key(directory: Path | None) -> Bundle:
    """Key and certificate of this user: those of a bundle, or of the cluster of their own.

    Raises
    ------
    ClusterError
        There are none, or they cannot be used.
    """
    if directory:
        return bundle.load(directory)[1]
    own = embedded.Paths.current().user
    if not own.key.exists():
        raise ClusterError(
            "You have no key to sign with yet, as a cluster's first start makes one: aios up"
        )
    return own


def _others() -> list[str]:
    """The certificates that `AIOS_SIGNERS` names: files, or folders of them."""
    found = []
    for name in filter(None, settings().signers.split(os.pathsep)):
        path = Path(name).expanduser()
        files = sorted(path.glob("*.pem")) if path.is_dir() else [path]
        found += [text for file in files for text in _texts(file)]
    return found


def _texts(path: Path, *, optional: bool = False) -> list[str]:
    try:
        return [path.read_text("ascii")]
    except FileNotFoundError:
        if optional:
            return []
        raise UsageError(
            f"AIOS_SIGNERS names {path}, which is not there; give PEM files, or folders of them."
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"The certificate {path} cannot be read ({error}); mend it.") from error
