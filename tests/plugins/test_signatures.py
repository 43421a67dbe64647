"""What is refused at load, with what it should be; and what goes on working."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import pluggy
import pytest

from monitor_plugin import Monitor, PluginError, Settings, hookimpl, hookspecs
from monitor_plugin.hookspecs import PROJECT_NAME
from monitor_plugin.plugins.executor import HookCall, HookExecutor
from monitor_plugin.plugins.manager import PluginManager
from monitor_plugin.plugins.signatures import argument_names, signature_of

GONE = "def monitor_backend_gone(self, backend: Backend, exit: BackendExit) -> None"


def module(source: str) -> types.ModuleType:
    made = types.ModuleType("the_module")
    exec(f"from monitor_plugin import hookimpl\n@hookimpl\n{source}", made.__dict__)
    return made


def instance(source: str) -> object:
    scope: dict[str, Any] = {"hookimpl": hookimpl}
    exec(f"class Plugin:\n  @hookimpl\n  {source}", scope)
    return scope["Plugin"]()


@pytest.mark.parametrize(
    ("make", "arguments", "words"),
    [
        (instance, "def {}(self, reason): ...", "the hook has no argument 'reason'"),
        (instance, "def {}(self, backend, exit, /): ...", "'backend' is positional-only"),
        (instance, "def {}(self, *args): ...", "it takes *args"),
        (instance, "def {}(self, **kwargs): ...", "it takes **kwargs"),
        (instance, "def {}(self, backend, *, exit): ...", "'exit' is keyword-only"),
        (instance, "def {}(self, backend, exit=None): ...", "'exit' has a default"),
        (instance, "def {}(backend, exit): ...", "a method without self"),
        (instance, "def {}(): ...", "a method without self"),
        (instance, "async def {}(self, backend): ...", "a coroutine function (async def)"),
        (instance, "def {}(self, backend): yield", "a generator"),
        (instance, "async def {}(self): yield", "a generator"),
        (module, "def {}(backend, ext): ...", "the hook has no argument 'ext'"),
        (module, "async def {}(backend, exit): ...", "a coroutine function"),
        (module, "def {}(*, exit): ...", "'exit' is keyword-only"),
    ],
)
def test_wrong_signature_is_refused(
    make: Callable[[str], object], arguments: str, words: str
) -> None:
    """The error has the problem and the expected signature; nothing stays registered."""
    manager = PluginManager()
    with pytest.raises(PluginError) as raised:
        manager.register(make(arguments.format("monitor_backend_gone")), "mine")
    assert words in str(raised.value)
    expected = GONE if make is instance else GONE.replace("self, ", "")
    assert str(raised.value).endswith(f"; it should be: {expected}")
    assert not manager.has_plugin("mine")


def test_class_instead_of_an_instance_is_refused() -> None:
    """The methods of a class cannot be called without an instance."""
    plugin = type(instance("def monitor_closing(self): ..."))
    with pytest.raises(PluginError, match="register an instance"):
        PluginManager().register(plugin)


@pytest.mark.parametrize(
    "source",
    [
        "def monitor_backend_gone(self): ...",
        "def monitor_backend_gone(self, exit): ...",
        "def monitor_backend_gone(self, exit, backend): ...",
        "def monitor_backend_gone(self, backend, exit, mine=5): ...",
        "def monitor_backend_gone(self, backend, *, mine=5): ...",
        "@staticmethod\n  def monitor_backend_gone(backend, exit): ...",
        "@classmethod\n  def monitor_backend_gone(cls, backend, exit): ...",
        "@wrapped\n  def monitor_backend_gone(self, backend, exit): ...",
    ],
)
def test_signature_that_pluggy_can_call_is_accepted(source: str) -> None:
    """Fewer arguments, another order, additional defaults, and decorated functions."""

    def wrapped(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    scope: dict[str, Any] = {"hookimpl": hookimpl, "wrapped": wrapped}
    exec(f"class Plugin:\n  @hookimpl\n  {source}", scope)
    manager = PluginManager()
    manager.register(scope["Plugin"](), "mine")
    executor = HookExecutor([manager])
    call = HookCall("monitor_backend_gone", None, {"backend": 1, "exit": 2})
    assert executor.call(call) == []


def test_plugins_of_the_host_are_validated() -> None:
    """A plugin of the host's manager with a wrong signature is refused at the installation."""
    manager = pluggy.PluginManager("myhost")

    class Mine:
        @pluggy.HookimplMarker("myhost")
        async def monitor_backend_gone(self, backend: Any) -> None: ...

    manager.register(Mine(), "mine")
    with pytest.raises(PluginError, match=r"plugin 'mine': .*coroutine function.*it should be"):
        Monitor(Settings(listen=None), host_manager=manager)


def test_old_implementation_works_with_a_new_argument() -> None:
    """Pluggy and the monitor pass only the arguments that an implementation names."""
    specs = types.ModuleType("later")

    def monitor_backend_gone(backend: object, exit: object, later: object) -> None: ...

    vars(specs)["monitor_backend_gone"] = hookspecs.hookspec(monitor_backend_gone)
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(specs)
    seen: list[object] = []

    class Old:
        @hookimpl
        def monitor_backend_gone(self, backend: object, exit: object) -> None:
            seen.append((backend, exit))

    class New:
        @hookimpl
        def monitor_backend_gone(self, later: object) -> None:
            seen.append(later)

    manager.register(Old())
    manager.register(New())
    arguments = {"backend": 1, "exit": 2, "later": 3}
    manager.hook.monitor_backend_gone(**arguments)
    HookExecutor([manager]).call(HookCall("monitor_backend_gone", None, arguments))
    assert seen == [3, (1, 2)] * 2


def test_host_hooks_keep_their_signatures() -> None:
    """One argument more or less would break every host."""
    assert [signature_of(hook) for hook in hookspecs.HOST_CALLS] == [
        "monitor_backend_spawned(model: str, pid: int, address: str) -> None",
        "monitor_backend_exited(model: str, pid: int, exit_code: int | None) -> None",
    ]


def test_hooks_keep_their_arguments() -> None:
    """New arguments come last; existing ones keep their names and positions."""
    kept = {
        "monitor_started": ("monitor",),
        "monitor_closing": (),
        "monitor_backend_registered": ("backend",),
        "monitor_query_status": ("backend", "timeout_seconds"),
        "monitor_call_metadata": ("backend",),
        "monitor_memory_components": ("backend", "pids"),
        "monitor_list_gpus": (),
        "monitor_list_models": (),
        "monitor_start_model": ("model", "timeout_seconds"),
        "monitor_read_log": ("model", "pid", "stream", "max_bytes"),
        "monitor_backend_postmortem": ("backend", "postmortem"),
        "monitor_describe_unit": ("backend",),
        "monitor_explain_exit": ("backend",),
        "monitor_before_shutdown": ("backend", "force"),
        "monitor_stop_backend": ("backend", "timeout_seconds"),
        "monitor_stop_signal": ("backend",),
        "monitor_shutdown_finished": ("backend", "outcome", "seconds", "freed"),
        "monitor_state_changed": ("backend", "previous", "current"),
        "monitor_readings_swept": ("readings",),
        "monitor_backend_gone": ("backend", "exit"),
        "monitor_backend_left_behind": ("backend", "pids"),
        "monitor_watchdog_acted": ("backend", "watchdog", "action", "reason"),
        "monitor_add_routes": ("app",),
    }
    for hook, arguments in kept.items():
        assert argument_names(hook)[: len(arguments)] == arguments
    assert {*kept, *hookspecs.HOST_CALLS} == {*hookspecs.HOOK_NAMES}
