"""Posts exits, state changes, shutdowns, actions of watchdogs and more to a URL, as signed JSON.

A background thread sends one POST per event from a queue; no reading or shutdown waits for a post.
After a network failure, or a response with status 408, 425, 429 or 5xx, the hook tries again after
1, 2, 4... up to 60 s, or after the seconds of `Retry-After` (up to 300). After any other status
than 2xx, also a redirect, it does not try again. A full queue drops its oldest event. The log
reports the first failure, the first lost event, and, when the queue is empty again, the number of
lost events. The log never contains the secret, and only the host of the URL.

    {"type": "ended", "at": "2026-11-24T13:50:12.123456Z", "model": "llama", "pid": 4711, ...}

The libraries of https://www.standardwebhooks.com verify the signature:

    webhook-id: UNIQUE          the same for each try; accept each id once
    webhook-timestamp: SECONDS  time of the try since the epoch; refuse posts over 5 minutes old
    webhook-signature: v1,BASE64 of HMAC-SHA256(secret, ID + "." + TIMESTAMP + "." + body)

To enable it, copy or link this file into the folder of the monitor's setting `hooks_dir`, and set
environment variables MONITOR_HOOK_WEBHOOK_...

    URL               https:// (verified; SSL_CERT_FILE names other authorities) or http://; the
                      environment's proxies are not used
    SECRET_FILE       a file that contains the secret: any text, or `whsec_` and base64
    SECRET            the secret itself; programs that the host starts inherit it
    TIMEOUT_SECONDS   the timeout of each network operation, in seconds (10)
    RETRY_SECONDS     the pause before the second try, in seconds (1)
    ATTEMPTS          the maximum number of tries per event (8)
    QUEUE             the maximum number of queued events (1000)
    LOG_LINES         the number of lines of the last output to post with each exit, at most 20 (0).
                      Without lines, an exit is posted immediately. With lines, it is posted some
                      seconds later, with more facts; and not if the monitor ends within these
                      seconds. The lines may hold what users sent to the model
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
        _logger.info("the hook does nothing: %s is not set", settings.variable("URL"))
        return None
    timeout = settings.get("TIMEOUT_SECONDS", seconds, "seconds over 0, as 10", 10.0)
    secret = settings.secret("SECRET")
    if secret is None:
        raise settings.error("SECRET_FILE", "write the path of a file that contains the secret")
    try:
        post = SignedPost(url, secret, timeout)
    except ValueError:
        message = "the text after whsec_ is not base64; write the secret as its receiver shows it"
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


def _line_count(text: str) -> int:
    return 0 if text == "0" else count(text)


_settings = HookSettings(__name__)
_queue = _make_queue(_settings)
_log_lines = _settings.get("LOG_LINES", _line_count, "the number of lines, as 20", 0)


def _put(event: dict[str, Any]) -> None:
    if event.get("last_output"):
        event["last_output"] = "\n".join(event["last_output"].split("\n")[-_log_lines:])
    if _queue:
        _queue.put(Message(f"msg_{uuid.uuid4().hex}", json.dumps(event).encode()))


_events = EventHooks(_put)
if _log_lines:
    monitor_backend_postmortem = _events.monitor_backend_postmortem
else:
    monitor_backend_gone = _events.monitor_backend_gone
monitor_backend_left_behind = _events.monitor_backend_left_behind
monitor_state_changed = _events.monitor_state_changed
monitor_shutdown_finished = _events.monitor_shutdown_finished
monitor_watchdog_acted = _events.monitor_watchdog_acted


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
