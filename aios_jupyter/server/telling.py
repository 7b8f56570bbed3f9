"""Routes for programs: what was missed, metrics, and who asks.

GET  aios/events?stream=&seq=   the events after that one, or one with the whole state
GET  aios/metrics               for Prometheus, with a Jupyter token in the header Authorization
GET  aios/me                    who Jupyter takes the caller for, and who the cluster takes Jupyter for
"""

from __future__ import annotations

import time
from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from . import metrics
from .routes import AiosHandler
from .stream import Stream

MOST_SEQ = 10**15


class EventsHandler(AiosHandler):
    """What a front end has missed while it was not connected."""

    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Answer with the events after the one that the caller has, in order."""
        seq = self.whole_number("seq", 0, most=MOST_SEQ) or 0
        mirror = self.stream.mirror
        events = mirror.since(self.get_query_argument("stream", ""), seq)
        self.answer({"events": [mirror.current()] if events is None else events})


class MetricsHandler(AiosHandler):
    """The cluster for Prometheus."""

    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Answer in Prometheus's text format."""
        text = metrics.exposition(self.stream.mirror.current(), time.time())
        self.finish(text, set_content_type="text/plain; version=0.0.4; charset=utf-8")


class MeHandler(AiosHandler):
    """Who asks."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Answer with the Jupyter user (JupyterHub's, under a hub) and their part in the cluster."""
        user = self.current_user
        cluster = self.stream.mirror.current().get("snapshot", {}).get("cluster", {})
        self.answer(
            {
                "user": user.username,
                "name": user.display_name or user.username,
                "cluster_user": cluster.get("user"),
                "cluster_role": cluster.get("role"),
            }
        )


def handlers(stream: Stream) -> list[tuple[str, type[AiosHandler], dict[str, Any]]]:
    """The routes, for `ExtensionApp.handlers`."""
    routes: list[tuple[str, type[AiosHandler]]] = [
        (r"/aios/events", EventsHandler),
        (r"/aios/metrics", MetricsHandler),
        (r"/aios/me", MeHandler),
    ]
    return [(pattern, handler, {"stream": stream}) for pattern, handler in routes]
