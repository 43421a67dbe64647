"""What a connection to NATS is subscribed to: the subjects of the models that are here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from .nats_link import Handler, NatsSession, Unsubscribe
from .subjects import Subjects


class Subscriptions:
    """Two for each model, of one connection; on the link's event loop.

    Args:
        session: the connection.
        subjects: where models are asked for.
        models: lists those that are here.
        on_read, on_shutdown: what is called with each message.
    """

    def __init__(
        self,
        session: NatsSession,
        subjects: Subjects,
        models: Callable[[], Collection[str]],
        on_read: Handler,
        on_shutdown: Handler,
    ) -> None:
        self._session = session
        self._subjects = subjects
        self._models = models
        self._on_read = on_read
        self._on_shutdown = on_shutdown
        self._held: dict[str, list[Unsubscribe]] = {}
        self._lock = asyncio.Lock()

    async def follow(self) -> frozenset[str]:
        """Bring them in line with the models that are here, and list these.

        Raises:
            nats.errors.Error: the connection has ended.
        """
        async with self._lock:
            wanted = set(self._models())
            for model in self._held.keys() - wanted:
                for unsubscribe in self._held.pop(model):
                    await unsubscribe()
            for model in wanted - self._held.keys():
                held = self._held[model] = []
                for subject, handler in (
                    (self._subjects.read_model(model), self._on_read),
                    (self._subjects.shutdown_model(model), self._on_shutdown),
                ):
                    held.append(await self._session.subscribe(subject, handler))
            return frozenset(wanted)
