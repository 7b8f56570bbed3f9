"""Endpoints over HTTPS: the cluster's certificate, one's own, and what is refused."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aios_jupyter import tls
from aios_jupyter.errors import AccessError, AiosError, UsageError
from aios_jupyter.models.client import EndpointClient
from aios_jupyter.models.serve import check_certificate

from .conftest import TOKEN, Served

X = np.ones((1, 2), np.float32)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cluster's authority, and a certificate that it has made for an endpoint."""
    folder = tmp_path_factory.mktemp("tls")
    tls.create(folder)
    tls.issue_endpoint(folder, "served", ["127.0.0.1", "localhost"], folder)
    return folder


def test_clients_reach_it_by_https_alone(
    serve: Callable[..., Served], line: Callable[..., Any], material: Path
) -> None:
    line("private", 2.0)
    served = serve(
        "private", "--certificate", str(material / "served.pem"), "--key",
        str(material / "served.key"), "--replicas", "0:1", "--watch", "0.5",
    )  # fmt: skip
    assert served.url.startswith("https://127.0.0.1:")
    authority = material / "endpoints" / "ca.pem"
    for trusted in (authority, material / "served.pem"):
        with EndpointClient(served.url, TOKEN, authority=trusted) as client:
            assert client.infer(X).tolist() == [[2, 2]]
    # Any other client, its host names checked.
    context = ssl.create_default_context(cafile=str(authority))
    host, port = served.url.removeprefix("https://").split(":")
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=20)
    connection.request("GET", "/ping")
    assert connection.getresponse().status == 200
    connection.close()
    with EndpointClient(served.url, TOKEN) as client, pytest.raises(AccessError, match="trusted"):
        client.infer(X)
    with EndpointClient(served.url, TOKEN, authority=material / "ca.pem") as client:
        with pytest.raises(AccessError, match="trusted"):
            client.infer(X)
    with EndpointClient(served.url.replace("https", "http"), TOKEN) as client:
        with pytest.raises(AiosError):
            client.infer(X)
    assert served.stop() == 0


def test_an_endpoints_certificate_opens_no_port_of_the_cluster(material: Path) -> None:
    authority = tls.Bundle(material / "ca.pem", material / "served.pem", material / "served.key")
    server = tls.Bundle.of(material, "broker").server_context()
    with pytest.raises(ssl.SSLError, match=r"(?i)verify failed|unknown ca"):
        shake_hands(authority.client_context(), server)


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """What two sides say to each other at first, in memory."""
    there, here, reading, writing = (ssl.MemoryBIO() for _ in range(4))
    sides = (
        (client.wrap_bio(there, here), here, reading),
        (server.wrap_bio(reading, writing, server_side=True), writing, there),
    )
    for side, out, into in sides * 5:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
        into.write(out.read())


def test_without_the_clusters_key_there_is_no_certificate(material: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes((material / "ca.pem").read_bytes())
    with pytest.raises(AccessError, match="--certificate"):
        tls.issue_endpoint(tmp_path, "served", ["127.0.0.1"], tmp_path)


def test_files_that_do_not_fit_are_refused(material: Path, tmp_path: Path) -> None:
    own = str(material / "served.pem"), str(material / "served.key")
    assert check_certificate(*own) == own
    assert check_certificate(None, None) == ("", "")
    (tmp_path / "nothing.pem").write_text("nothing")
    for certificate, key, says in (
        (own[0], None, "both"),
        (None, own[1], "both"),
        (own[0], str(material / "user.key"), "not possible"),
        (str(tmp_path / "nothing.pem"), own[1], "not possible"),
        (str(tmp_path / "absent.pem"), own[1], "No such file"),
    ):
        with pytest.raises(UsageError, match=says):
            check_certificate(certificate, key)
    with EndpointClient("https://127.0.0.1:9", TOKEN) as client:
        with pytest.raises(AiosError):
            client.infer(X)
    with pytest.raises(UsageError, match="no certificate"):
        EndpointClient("https://127.0.0.1:9", TOKEN, authority=tmp_path / "nothing.pem")
