"""The resources about the monitor itself: health, version, plugins and API description."""

from __future__ import annotations

from collections.abc import Callable

import falcon

from ...api.requests import is_verbose
from ...api.results import CheckItem, HealthAnswer, ReadyAnswer, hooks_answer
from ...api.schemas import VersionAnswer
from ...domain.models import LoadedPlugin
from ...domain.version import package_version
from ..messages import send_answer


class HealthResource:
    """`/healthz` and `/readyz`: whether the HTTP server answers, and whether the monitor runs.

    Args:
        is_ready: whether the monitor is started and not closing.
        unseen: what the monitor cannot see of other users' processes; None if it sees all.
        examine: checks what the monitor can see and do; called for `/readyz?verbose` alone.
    """

    def __init__(
        self,
        is_ready: Callable[[], bool],
        unseen: str | None,
        examine: Callable[[], list[CheckItem]],
    ) -> None:
        self._is_ready = is_ready
        self._unseen = unseen
        self._examine = examine

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer `ok`."""
        send_answer(response, HealthAnswer("ok"))

    def on_get_ready(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer whether the monitor is started and not closing; with `verbose`, also the checks.

        Checks that fail do not change the status code: an orchestrator would restart the monitor.
        """
        ready = self._is_ready()
        if not ready:
            response.status = falcon.HTTP_503
        checks = self._examine() if is_verbose(request.query_string) else None
        send_answer(response, ReadyAnswer("ready" if ready else "not ready", self._unseen, checks))


class VersionResource:
    """`/version`: the name and version of the program."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with the name and the version."""
        answer = VersionAnswer("monitor-plugin", package_version())
        send_answer(response, answer)


class HooksResource:
    """`/hooks`: the plugins that are loaded, and statistics of their hooks.

    Args:
        plugins: lists the plugins.
        disabled: names of plugins that are not loaded.
    """

    def __init__(
        self, plugins: Callable[[], list[LoadedPlugin]], disabled: tuple[str, ...]
    ) -> None:
        self._plugins = plugins
        self._disabled = disabled

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with the plugins."""
        send_answer(response, hooks_answer(self._plugins(), self._disabled))


class OpenApiResource:
    """`/openapi.json`: the description of the API."""

    def __init__(self, document: bytes) -> None:
        self._document = document

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer with the document."""
        response.data = self._document
        response.content_type = falcon.MEDIA_JSON
