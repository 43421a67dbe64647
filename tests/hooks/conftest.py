from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _no_hooks_are_left() -> Iterator[None]:
    """Takes the hooks that a monitor loaded out of the modules, where other tests look."""
    yield
    for name in [each for each in sys.modules if each.startswith("monitor_plugin_hooks.")]:
        del sys.modules[name]
