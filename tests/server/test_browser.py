"""What a browser's cookie opens, and what a page that means harm does not get."""

from __future__ import annotations

import asyncio
import json
from http.cookies import SimpleCookie
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError

from aios_jupyter.server.app import AiosApp
from aios_jupyter.server.stream import EVENT

from .test_routes import ROUTES, body_of

HARM = '<img src=x onerror=alert(1)>"\r\nX-Evil: 1</script><script>alert(1)</script>'


@pytest.fixture
def cookies(
    jp_fetch: Any, server: AiosApp, jp_asyncio_loop: asyncio.AbstractEventLoop
) -> dict[str, str]:
    """Those of a browser in which somebody has logged in."""
    return jp_asyncio_loop.run_until_complete(_logged_in(jp_fetch))


async def _logged_in(jp_fetch: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for path, headers in {"login": {"Authorization": ""}, "api/status": {}}.items():
        response = await jp_fetch(path, headers=headers, raise_error=False)
        for line in response.headers.get_list("Set-Cookie"):
            found |= {name: one.value for name, one in SimpleCookie(line).items() if one.value}
    return found


def sent(cookies: dict[str, str], **more: str) -> dict[str, str]:
    text = "; ".join(f"{name}={value}" for name, value in cookies.items())
    return {"Cookie": text, "Authorization": "", **more}


@pytest.mark.parametrize(("method", "path"), [r for r in ROUTES if r[0] != "GET"])
async def test_what_changes_something_wants_the_pages_own_token_beside_the_cookie(
    jp_fetch: Any, server: AiosApp, cluster: Any, cookies: dict[str, str], method: str, path: str
) -> None:
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch(path, headers=sent(cookies), **body_of(method))
    assert refused.value.code == 403
    assert cluster.upstream.calls == []


async def test_the_cookie_with_the_pages_token_is_let_in(
    jp_fetch: Any, server: AiosApp, cluster: Any, cookies: dict[str, str]
) -> None:
    headers = sent(cookies, **{"X-XSRFToken": cookies["_xsrf"]})
    assert (await jp_fetch("aios/snapshot", headers=headers)).code == 200
    await jp_fetch("aios/leases/l-7c1", method="DELETE", headers=headers)
    assert [op for op, _ in cluster.upstream.calls] == ["release"]


async def test_names_that_mean_harm_are_data_and_no_page(
    jp_fetch: Any, server: AiosApp, cluster: Any
) -> None:
    row = {**cluster.upstream.view["leases"]["l-7c1"], "label": HARM}
    cluster.upstream.change("leases", {"l-7c1": row})
    for path in ("aios/snapshot", "aios/events", "aios/history", "aios/models"):
        response = await jp_fetch(path, raise_error=False)
        assert response.headers["Content-Type"].startswith("application/json"), path
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "X-Evil" not in response.headers
    told = json.loads((await jp_fetch("aios/snapshot")).body)["snapshot"]
    assert told["leases"]["l-7c1"]["label"] == HARM
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch("aios", "runs", "%3Cscript%3E%0D%0AX-Evil: 1", "profile")
    response = refused.value.response
    assert response is not None
    assert refused.value.code == 404
    assert response.headers["Content-Type"].startswith("application/json")
    assert "X-Evil" not in response.headers


async def test_events_are_for_who_is_let_in(
    jp_ws_fetch: Any, server: AiosApp, cluster: Any
) -> None:
    with pytest.raises(HTTPClientError) as refused:
        await jp_ws_fetch("api/events/subscribe", headers={"Authorization": "token wrong"})
    assert refused.value.code == 403
    socket = await jp_ws_fetch("api/events/subscribe")
    cluster.upstream.change("leases", {"l-7c1": None})
    while (event := json.loads(await socket.read_message()))["schema_id"] != EVENT:
        pass
    assert event["delta"] == {"leases": {"l-7c1": None}}
    socket.close()
