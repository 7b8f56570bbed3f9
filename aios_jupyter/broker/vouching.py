"""Whether models have to be signed here, and whose signatures count.

The broker knows no models: who serves one asks this, and looks at the signatures.
"""

from __future__ import annotations

from ..tls import Bundle, Revoked
from . import events as ev
from . import messages as msg
from .hub import Hub
from .people import People
from .protocol import Connection, Handler


class Vouching:
    """What admins demand of models."""

    def __init__(self, hub: Hub, people: People, bundle: Bundle, revoked: Revoked) -> None:
        self._hub = hub
        self._people = people
        self._authority = bundle.authority.read_text("ascii")
        self._revoked = revoked

    def handlers(self) -> dict[str, Handler]:
        """The calls, for `Connection`."""
        return {
            "trust.get": (None, self._people.guard("trust.get", self._get)),
            "trust.set": (msg.SignatureChoice, self._people.guard("trust.set", self._set)),
        }

    def _get(self, connection: Connection, _: None) -> msg.Vouched:
        return msg.Vouched(
            required=self._hub.state.signature_required,
            authority=self._authority,
            revoked=tuple(f"{serial:X}" for serial in sorted(self._revoked.serials())),
        )

    def _set(self, connection: Connection, body: msg.SignatureChoice) -> msg.Vouched:
        admin = connection.role == "admin"
        self._hub.handle(
            ev.SignatureDemanded(required=body.required, by=connection.name, admin=admin)
        )
        return self._get(connection, None)
