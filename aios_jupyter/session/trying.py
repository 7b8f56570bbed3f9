"""Trying an endpoint by hand: what it takes, and its answer to what somebody has filled in."""

from __future__ import annotations

import time as clock
from typing import TYPE_CHECKING, Any

from ..errors import AccessError, AiosError, NotFoundError
from .endpoint_files import authority_of, token_of
from .endpoints import EndpointVerbs

if TYPE_CHECKING:
    from ..models.client import EndpointClient

MOST_ANSWER = 2 << 20
"""Bytes of an answer that somebody can look at."""


class TryingVerbs(EndpointVerbs):
    """A session in which endpoints are tried: `predict` for people in place of programs."""

    def endpoint_form(self, name: str) -> dict[str, Any]:
        """What an endpoint of this user takes and gives, and an example to begin with.

        Returns
        -------
        `name`, `model`, `versions` (those that answer, the first most), `inputs` and `outputs` (in the
        words of the Open Inference Protocol), `example` (one sample by input, None without one) and
        `note` (why there is none).

        Raises
        ------
        NotFoundError
            No endpoint of that name is live.
        AccessError
            It is somebody else's.
        """
        import msgspec

        row = self._own_endpoint(name)
        with _client(row) as client:
            told = client.describe()
        model = row["model"].partition("/")[0]
        example, note = None, ""
        try:
            from ..models.example import example as example_of

            example = example_of(f"{model}/{told.versions[0]}", told.signature)
        except AiosError as error:  # the endpoint answers without it
            note = str(error)
        about = msgspec.to_builtins(told)
        return {**about, "name": name, "model": model, "example": example, "note": note}

    def try_endpoint(self, name: str, body: bytes) -> dict[str, Any]:
        """The answer of an endpoint of this user to `{"inputs": …}` (JSON, sent as it is).

        Returns
        -------
        `outputs` (`msgspec.Raw`: JSON as it came), `version` that gave them, and `milliseconds` from
        the request to the whole answer, as seen from here.

        Raises
        ------
        NotFoundError
            No endpoint of that name is live.
        AccessError
            It is somebody else's.
        AiosError
            What the endpoint says.
        """
        row = self._own_endpoint(name)
        with _client(row) as client:
            began = clock.perf_counter()
            answer = client.ask(body, MOST_ANSWER)
            took = 1000 * (clock.perf_counter() - began)
        return {
            "outputs": answer.outputs,
            "version": answer.version,
            "milliseconds": round(took, 3),
        }

    def _own_endpoint(self, name: str) -> dict[str, Any]:
        row = next((row for row in self.endpoints() if row["name"] == name), None)
        if row is None or not row["url"]:
            why = "is live" if row is None else "answers yet"
            raise NotFoundError(f"No endpoint {name!r} {why}; 'aios endpoints' lists them.")
        if row["user"] != self.user:
            raise AccessError(
                f"The endpoint {name!r} belongs to {row['user']}, who alone has its token; ask them."
            )
        return row


def _client(row: dict[str, Any]) -> EndpointClient:
    from ..models.client import EndpointClient

    return EndpointClient(row["url"], token_of(row), authority=authority_of(row["name"]))
