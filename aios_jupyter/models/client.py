"""Ask an endpoint. Light: the standard library, numpy and msgspec, no torch and no MLflow."""

from __future__ import annotations

import http.client
import ssl
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from ..errors import (
    AccessError,
    AiosError,
    ClusterError,
    ConflictError,
    NotFoundError,
    UsageError,
)
from ..units import format_size
from .predictor import named_inputs
from .protocol_v2 import HEADER, decode_response, encode_request
from .signature import Signature, Tensor

T = TypeVar("T")

_BY_STATUS: dict[int, type[AiosError]] = {
    400: UsageError,
    401: AccessError,
    404: NotFoundError,
    408: ClusterError,
    413: UsageError,
    422: UsageError,
    429: ConflictError,
    503: ConflictError,
}


class Described(msgspec.Struct):
    """A model as its endpoint describes it; of the versions that answer the first gets most."""

    name: str
    versions: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def signature(self) -> Signature:
        """What it takes and gives."""
        return Signature(inputs=self.inputs, outputs=self.outputs)


class _Describing(msgspec.Struct):
    model: Described


class Answered(msgspec.Struct):
    """What the plain JSON route answers: the outputs as JSON, and the version that gave them."""

    outputs: msgspec.Raw
    model: str
    version: str


class _Window(msgspec.Struct):
    features: dict[str, list[float]]


class EndpointClient:
    """One kept connection to an endpoint. Not for several threads at once.

    Parameters
    ----------
    url
        The endpoint's address, as its run reports it: "http://127.0.0.1:40001".
    token
        The endpoint's token.
    timeout
        Seconds to wait for a reply.
    authority
        The certificate that the endpoint's must be, or be signed by; its host's name is not looked
        at then. None trusts what this machine trusts.
    """

    def __init__(
        self, url: str, token: str, *, timeout: float = 60.0, authority: Path | None = None
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is no endpoint; give an address such as http://HOST:PORT.")
        self.url = url.rstrip("/")
        self._path = parts.path.rstrip("/")
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            self._connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=timeout, context=_context(authority)
            )
        else:
            self._connection = http.client.HTTPConnection(
                parts.hostname, parts.port, timeout=timeout
            )
        self._headers = {"Authorization": f"Bearer {token}"}
        self._signature: Signature | None = None

    def __enter__(self) -> EndpointClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def infer(self, x: Any) -> Any:
        """The model's output for `x`.

        Parameters
        ----------
        x
            An array, tensor or lists with the batch as first dimension; a dict by input name where
            the model takes several. Numbers are converted to the model's types.

        Returns
        -------
        numpy.ndarray or dict of them by output name where the model gives several.

        Raises
        ------
        UsageError
            The input does not match the model's signature, or is too large.
        AccessError
            The token is not the endpoint's.
        NotFoundError
            Nothing answers at this address.
        ConflictError
            The endpoint is stopping or overloaded.
        ClusterError
            The endpoint did not answer in time or as it should.
        """
        body, length = encode_request(named_inputs(self.signature(), x))
        headers = {HEADER: str(length), "Content-Type": "application/octet-stream"}
        content, reply = self._request("POST", "/predict", body, headers)
        try:
            arrays = decode_response(content, reply.getheader(HEADER))
        except (msgspec.DecodeError, UsageError) as error:
            raise ClusterError(f"{self.url} answered as no endpoint does: {error}") from None
        return next(iter(arrays.values())) if len(arrays) == 1 else arrays

    def signature(self) -> Signature:
        """What the model takes and gives (asked once)."""
        if self._signature is None:
            self._signature = self.describe().signature
        return self._signature

    def describe(self) -> Described:
        """The model's name, the versions that answer now, what they take and give."""
        return self._decoded(self._request("GET", "/v2")[0], _Describing).model

    def ask(self, body: bytes, most: int) -> Answered:
        """The answer to a body of the plain JSON route, `{"inputs": …}`, which is sent as it is.

        Parameters
        ----------
        most
            Bytes of an answer at most; more are not read.

        Raises
        ------
        UsageError
            The model does not take it, or the answer is longer.
        AiosError
            As `infer`.
        """
        headers = {"Content-Type": "application/json"}
        content, _ = self._request("POST", "/predict", body, headers, most)
        if len(content) > most:
            self._connection.close()
            raise UsageError(
                f"The answer has more than {format_size(most)}; ask with 'aios predict', which gives "
                "all of it."
            )
        return self._decoded(content, Answered)

    def metrics(self) -> str:
        """The endpoint's metrics in Prometheus's text format."""
        return self._request("GET", "/metrics")[0].decode()

    def window(self) -> dict[str, list[float]]:
        """Features of the samples that it answered last (`profile.features`)."""
        return self._decoded(self._request("GET", "/monitor")[0], _Window).features

    def _decoded(self, content: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(content, type=kind)
        except msgspec.DecodeError as error:
            raise ClusterError(f"{self.url} answered as no endpoint does: {error}") from None

    def _once(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], most: int | None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        self._connection.request(method, self._path + path, body, headers)
        reply = self._connection.getresponse()
        return reply, reply.read() if most is None else reply.read(most + 1)

    def _request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        most: int | None = None,
    ) -> tuple[bytes, http.client.HTTPResponse]:
        """What is answered; of an answer longer than `most` one byte more than that."""
        send = {**self._headers, **(headers or {})}
        try:
            try:
                reply, content = self._once(method, path, body, send, most)
            except _LOST:
                # A kept connection may have been closed in the meantime, or a replica died with
                # this request: once more on a new one, for asking twice changes nothing.
                self._connection.close()
                reply, content = self._once(method, path, body, send, most)
        except ConnectionRefusedError:
            self._connection.close()
            raise NotFoundError(
                f"No endpoint answers at {self.url}; see: aios endpoints."
            ) from None
        except ssl.SSLCertVerificationError as error:
            self._connection.close()
            raise AccessError(
                f"The endpoint at {self.url} shows a certificate that is not trusted here "
                f"({error.verify_message}); give the one that signed it."
            ) from None
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ClusterError(
                f"The endpoint at {self.url} did not answer ({error}); see: aios endpoints."
            ) from None
        if reply.status != 200:
            raise _error(reply.status, content, self.url)
        return content, reply


def _context(authority: Path | None) -> ssl.SSLContext:
    if authority is None:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # it is this one certificate, or one that it has signed
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"{authority} is no certificate ({error}); give a PEM file.") from None
    return context


_LOST = (
    http.client.RemoteDisconnected,
    http.client.IncompleteRead,
    BrokenPipeError,
    ConnectionResetError,
)


def _error(status: int, content: bytes, url: str) -> AiosError:
    try:
        sentence = msgspec.json.decode(content, type=dict[str, str])["error"]
    except (msgspec.DecodeError, KeyError):
        return ClusterError(f"{url} answered with status {status}, as no endpoint does.")
    return _BY_STATUS.get(status, ClusterError)(sentence)


def infer(
    url: str, token: str, x: Any, *, timeout: float = 60.0, authority: Path | None = None
) -> np.ndarray | Any:
    """Ask the endpoint at `url` once (`EndpointClient.infer` says what goes in and comes out)."""
    with EndpointClient(url, token, timeout=timeout, authority=authority) as client:
        return client.infer(x)
