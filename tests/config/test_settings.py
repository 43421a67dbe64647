"""Settings, from Python and from the environment."""

from __future__ import annotations

from typing import Any

import pytest

from monitor_plugin import Settings, SettingsError
from monitor_plugin.config.settings import parse_listen, setting_text


def test_every_setting_can_come_from_the_environment() -> None:
    """Each field has a variable. An empty one counts as unset, `none` as None."""
    environment = {
        "MONITOR_LISTEN": "none",
        "MONITOR_TOKEN": "s3cret",
        "MONITOR_STATUS_TIMEOUT_SECONDS": "2.5",
        "MONITOR_DRAIN_TIMEOUT_SECONDS": "0",
        "MONITOR_STOP_TIMEOUT_SECONDS": "3",
        "MONITOR_RESPAWN_WATCH_SECONDS": "",
        "MONITOR_HOOK_TIMEOUT_SECONDS": "4",
        "MONITOR_HTTP_THREADS": "2",
        "MONITOR_HOOKS_DIR": "/etc/hooks",
        "MONITOR_INSECURE": "true",
        "MONITOR_SOCKET_MODE": "0660",
        "MONITOR_TOKEN_FILE": "/etc/tokens",
        "MONITOR_ALLOWED_HOSTS": "a.example, [::2],",
        "MONITOR_ALLOWED_ORIGINS": "none",
        "MONITOR_TRUSTED_PROXY": "10.0.0.1",
        "MONITOR_GRPC_CA_FILE": "/etc/ca.pem",
        "MONITOR_GRPC_TOKEN_FILE": "/etc/token",
        "OTHER": "x",
    }
    assert Settings.from_environment(environment) == Settings(
        listen=None,
        token="s3cret",
        status_timeout_seconds=2.5,
        drain_timeout_seconds=0.0,
        stop_timeout_seconds=3.0,
        hook_timeout_seconds=4.0,
        http_threads=2,
        hooks_dir="/etc/hooks",
        insecure=True,
        socket_mode=0o660,
        token_file="/etc/tokens",
        allowed_hosts=("a.example", "[::2]"),
        trusted_proxy="10.0.0.1",
        grpc_ca_file="/etc/ca.pem",
        grpc_token_file="/etc/token",
    )


@pytest.mark.parametrize(
    "variable", ["MONITOR_SOCKET_MODE=0888", "MONITOR_SOCKET_MODE=x", "MONITOR_INSECURE=perhaps"]
)
def test_invalid_variable_is_named_in_the_error(variable: str) -> None:
    """The text of the variable cannot be converted to the type of the setting."""
    name, _, text = variable.partition("=")
    with pytest.raises(SettingsError, match=f"^{name}='{text}'"):
        Settings.from_environment({name: text})


@pytest.mark.parametrize("name", ["gpu", "stop_signal_target"])
def test_error_of_a_setting_with_choices_names_them(name: str) -> None:
    """The reader of the error need not look the choices up, in Python and as a variable."""
    choices = {"gpu": "auto, off, nvidia or drm", "stop_signal_target": "root or all"}[name]
    variable = f"MONITOR_{name.upper()}"
    with pytest.raises(SettingsError, match=f"^{variable}='amd': it is none of {choices}$"):
        Settings.from_environment({variable: "amd"})
    wrong: dict[str, Any] = {name: "amd"}
    with pytest.raises(SettingsError, match=f"^setting {name}: 'amd' is none of {choices}$"):
        Settings(**wrong)


def test_setting_text_is_the_text_of_the_variable() -> None:
    """The text of a setting is the one that a variable takes."""
    assert setting_text("socket_mode", 0o600) == "0600"
    assert setting_text("allowed_hosts", ()) == setting_text("token_file", None) == "none"
    assert setting_text("allowed_hosts", ("a", "b")) == "a,b"


def test_repr_hides_the_token() -> None:
    """It shows only whether there is a token."""
    assert "s3cret" not in repr(Settings(token="s3cret"))
    assert "s3cret" not in str(list(Settings(token="s3cret").__rich_repr__()))  # what rich shows
    assert "token='***'" in repr(Settings(token="s3cret"))
    assert "token=None" in repr(Settings())


@pytest.mark.parametrize(
    "bad",
    [
        {"status_timeout_seconds": 0},
        {"status_timeout_seconds": -1.0},
        {"status_timeout_seconds": float("nan")},
        {"status_timeout_seconds": float("inf")},
        {"status_timeout_seconds": "1"},
        {"drain_timeout_seconds": -0.1},
        {"http_threads": 1},
        {"http_threads": 2.5},
        {"listen": 8080},
        {"listen": "8080"},
        {"listen": ":8080"},
        {"listen": "localhost:"},
        {"listen": "localhost:65536"},
        {"listen": "::1:80"},
        {"listen": "[::g]:80"},
        {"token": 5},
    ],
)
def test_invalid_setting_is_named_in_the_error(bad: dict[str, Any]) -> None:
    """It raises at once."""
    (name,) = bad
    with pytest.raises(SettingsError, match=name) as raised:
        Settings(**bad)
    assert raised.value.setting == name


def test_listen_is_parsed_into_host_and_port() -> None:
    """HOST:PORT, with IPv6 addresses in brackets."""
    assert parse_listen("localhost:0") == (None, "localhost", 0)
    assert parse_listen("[::1]:80") == (None, "::1", 80)
