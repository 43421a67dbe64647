"""The demo's host: its models can be stopped and started again."""

from __future__ import annotations

from monitor_plugin import KnownModel, Settings
from monitor_plugin.demo.host import MODELS, demo


def test_models_of_the_demo_can_be_started_again() -> None:
    """The host lists all of them, and says which it was asked to stop."""
    settings = Settings(listen=None, gpu="off", status_timeout_seconds=30.0)
    with demo(settings) as monitor:
        running = [KnownModel(model, "running", can_start=True) for model in MODELS]
        assert monitor.known_models() == running
        (before,) = [each for each in monitor.backends() if each.model == "my-model"]
        monitor.shutdown("my-model")
        monitor.start_model("my-model")
        (after,) = [each for each in monitor.backends() if each.model == "my-model"]
        assert after.pid != before.pid
        monitor.restart_model("my-model")
