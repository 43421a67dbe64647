"""Posts exits, state changes and shutdowns to a URL, as signed JSON.

A thread of its own sends one POST per event from a queue, so no reading or shutdown waits for it.
After a failure of the network, or a status of 408, 425, 429 or 5xx, the post is tried again after
1, 2, 4... up to 60 s, or after the seconds of `Retry-After` (up to 300). Any other status but 2xx,
also a redirect, is final. A full queue drops its oldest event. The log says when posts begin to
fail or to be lost, and how many were lost when they work again. It never has the secret, and of the
URL only the host.

    {"type": "ended", "at": "2026-11-24T13:50:12.123456Z", "model": "llama", "pid": 4711, ...}

The signature is that of https://www.standardwebhooks.com, whose libraries verify it:

    webhook-id: UNIQUE          the same on each try: accept it once
    webhook-timestamp: SECONDS  since the epoch, of this try: refuse it if over 5 minutes old
    webhook-signature: v1,BASE64 of HMAC-SHA256(secret, ID + "." + TIMESTAMP + "." + body)

To enable it, copy or link this file into the folder of the monitor's setting `hooks_dir`, and set
environment variables MONITOR_HOOK_WEBHOOK_...

    URL               https:// (verified; SSL_CERT_FILE names other authorities) or http://; proxies
                      in the environment are not used
    SECRET_FILE       a file that holds the secret: any text, or `whsec_` and base64
    SECRET            the secret itself; programs that the host starts inherit it
    TIMEOUT_SECONDS   the timeout of each wait on the network, in seconds (10)
    RETRY_SECONDS     the first pause, in seconds (1)
    ATTEMPTS          the maximum number of tries for one event (8)
    QUEUE             the maximum number of waiting events (1000)
"""

from __future__ import annotations

import json
import logging
import uuid
from typing import Any

from monitor_plugin import hookimpl
from monitor_plugin.hook_support.delivery import SendQueue
from monitor_plugin.hook_support.events import EventHooks
from monitor_plugin.hook_support.settings import HookSettings, count, seconds
from monitor_plugin.hook_support.signed_post import Message, SignedPost, parse_url

_logger = logging.getLogger(__name__)


def _make_queue(settings: HookSettings) -> SendQueue[Message] | None:
    url = settings.get("URL", parse_url, "a URL, as https://alerts.example/hook", None, hide=True)
    if url is None:
        _logger.info("it does nothing: %s is not set", settings.variable("URL"))
        return None
    timeout = settings.get("TIMEOUT_SECONDS", seconds, "seconds over 0, as 10", 10.0)
    secret = settings.secret("SECRET")
    if secret is None:
        raise settings.error("SECRET_FILE", "write the path of a file that holds the secret")
    try:
        post = SignedPost(url, secret, timeout)
    except ValueError:
        message = "after whsec_ there is no base64; write the secret as its receiver shows it"
        raise settings.error("SECRET", message) from None
    return SendQueue(
        post.send,
        f"webhook at {url.hostname}",
        _logger,
        size=settings.get("QUEUE", count, "how many events may wait, as 1000", 1000),
        attempts=settings.get("ATTEMPTS", count, "how often to try, as 8", 8),
        pause_seconds=settings.get("RETRY_SECONDS", seconds, "seconds over 0, as 1", 1.0),
        interrupt=post.interrupt,
    )


_queue = _make_queue(HookSettings(__name__))


def _put(event: dict[str, Any]) -> None:
    if _queue:
        _queue.put(Message(f"msg_{uuid.uuid4().hex}", json.dumps(event).encode()))


_events = EventHooks(_put)
monitor_backend_gone = _events.monitor_backend_gone
monitor_state_changed = _events.monitor_state_changed
monitor_shutdown_finished = _events.monitor_shutdown_finished


@hookimpl
def monitor_started() -> None:
    """Start the thread."""
    if _queue:
        _queue.start()


@hookimpl
def monitor_closing() -> None:
    """End the thread."""
    if _queue:
        _queue.close()
