"""The options of the plugin's section in circus.ini."""

from __future__ import annotations

import re

import msgspec
import pytest

from monitor_plugin import MonitorError, Settings
from monitor_plugin.config.settings import setting_text
from monitor_plugin.hosts.circus.options import check_arguments, parse_options


def test_every_setting_except_the_token_is_a_circus_option() -> None:
    """Each option has the name of the setting, and its value as text."""
    options = {
        field.name: setting_text(field.name, field.default)
        for field in msgspec.structs.fields(Settings)
        if field.name != "token"
    }
    assert parse_options(options, (), {}) == (Settings(), [])


def test_circus_options_take_precedence_over_the_environment() -> None:
    """Variables count for settings that have no option, such as the token."""
    environ = {
        "MONITOR_TOKEN": "secret",
        "MONITOR_HTTP_THREADS": "5",
        "MONITOR_LISTEN": "localhost:1",
    }
    options = {"listen": "127.0.0.1:9", "insecure": "true", "allowed_hosts": "a, b"}
    settings, _ = parse_options(options, (), environ)
    assert settings == Settings(
        listen="127.0.0.1:9",
        insecure=True,
        allowed_hosts=("a", "b"),
        http_threads=5,
        token="secret",
    )


def test_circus_rules_are_separated_by_lines_or_commas() -> None:
    """A section may have several rules."""
    _, rules = parse_options({"backend": "a=m@127.0.0.1:1, b-*=n@unix:/*\nc=o,"}, (), {})
    assert [rule.match(name) for rule, name in zip(rules, ("a", "b-2", "c"), strict=True)] == [
        ("m", "127.0.0.1:1"),
        ("n", "unix:/2"),
        ("o", None),
    ]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"listn": "x"}, "unknown option 'listn'; there are backend, listen, insecure"),
        ({"http_threads": "many"}, "option http_threads='many': "),
        ({"stop_timeout_seconds": "-1"}, "option stop_timeout_seconds='-1': "),
        ({"backend": "nothing"}, "'nothing' is not NAME=MODEL@ADDRESS"),
        ({"token": "very-secret"}, "token is no option"),
    ],
)
def test_invalid_circus_option_raises_an_error(options: dict[str, str], error: str) -> None:
    """The error names the option and what is wrong, and does not quote a secret."""
    with pytest.raises(MonitorError, match=re.escape(error)) as raised:
        parse_options(options, (), {})
    assert "very-secret" not in str(raised.value)


def test_options_of_circus_itself_are_ignored() -> None:
    """The section may have the options of a watcher too."""
    assert parse_options({"priority": "7"}, ("priority",), {}) == (Settings(), [])


@pytest.mark.parametrize("value", ["::1", "", "x:"])
def test_option_that_circus_drops_raises_an_error(value: str) -> None:
    """circus passes some values to the plugin incompletely."""
    items = {"__name__": "plugin:monitor", "trusted_proxy": value, "use_sockets": "1"}
    config = ":::".join(f"{key}:{text}" for key, text in items.items())
    with pytest.raises(MonitorError, match="circus lost options"):
        check_arguments(["-c", "--config", config, "monitor_plugin.hosts.circus.MonitorPlugin"])


def test_options_with_inner_colons_are_accepted() -> None:
    """circus passes such values completely."""
    check_arguments(["-c", "--config", "listen:[::1]:8080:::name:plugin:monitor", "x"])
    check_arguments(["-c", "--config", "listen:unix:///run/monitor.sock:::name:plugin:m", "x"])
    check_arguments(["pytest"])
