"""`user_add`, `user_list`, `user_revoke`, `audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..broker.messages import Records, UserChange
from ..cluster import users
from .link import Link


class UserVerbs(Link):
    """A session that says who may use the cluster, and looks up who did what."""

    def user_add(
        self, name: str, role: str = "user", to: str | Path | None = None, *, days: float = 365.0
    ) -> dict[str, Any]:
        """Give a person access: writes a bundle, which they name in `AIOS_BUNDLE`.

        Parameters
        ----------
        role
            `user` leases and runs, `viewer` looks on, `admin` may end what is anybody's.
        to
            Directory of the bundle (default: `aios-NAME` here). Its key is a secret.
        days
            How long the access lasts.

        Raises
        ------
        ConflictError
            That name has access already, or there is a bundle.
        AccessError
            The cluster is somebody else's.
        """
        directory = Path(to or f"aios-{name}").expanduser().absolute()
        row = users.add(name, role, directory, days=days)
        self._call("user.changed", UserChange(what="added", name=name, role=role))
        return {**row, "state": "active", "bundle": str(directory)}

    def user_list(self) -> list[dict[str, Any]]:
        """Everybody who has or had access: name, role, state, added, expires (epoch seconds)."""
        return users.rows()

    def user_revoke(self, name: str) -> dict[str, Any]:
        """Take a person's access away: connections, leases, runs and requests end now.

        Raises
        ------
        NotFoundError
            Nobody of that name has access.
        """
        row = users.revoke(name)
        self._call("user.changed", UserChange(what="revoked", name=name, role=row["role"]))
        return row

    def audit(self, limit: int = 200) -> list[dict[str, Any]]:
        """The newest audit records, for admins: time, what, who and detail of each.

        Grants, ends, refusals, and who was given access or had it taken away.

        Raises
        ------
        AccessError
            You are not an admin.
        """
        return list(self._call("audit", Records(limit=limit)))
