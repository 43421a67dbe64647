from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from monitor_plugin.domain.address import (
    FORMS,
    canonical_address,
    http_url,
    is_http,
    is_local,
    parse_address,
)


@pytest.mark.parametrize(
    ("address", "canonical"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50051"),
        ("localhost:50051", "127.0.0.1:50051"),
        ("LocalHost.:50051", "127.0.0.1:50051"),
        ("0.0.0.0:50051", "127.0.0.1:50051"),
        ("dns:///localhost:50051", "127.0.0.1:50051"),
        ("dns:localhost:50051", "127.0.0.1:50051"),
        (":50051", "127.0.0.1:50051"),
        ("*:50051", "127.0.0.1:50051"),
        ("[::]:50051", "127.0.0.1:50051"),
        ("[0::0]:50051", "127.0.0.1:50051"),
        ("[::ffff:0.0.0.0]:50051", "127.0.0.1:50051"),
        ("dns:///[::]:50051", "127.0.0.1:50051"),
        ("grpcs://:50051", "127.0.0.1:50051"),
        ("ipv4:0.0.0.0:50051", "127.0.0.1:50051"),
        ("ipv6:[::]:50051", "127.0.0.1:50051"),
        ("ipv4:1.2.3.4:50051", "1.2.3.4:50051"),
        ("ipv4:///1.2.3.4:50051", "1.2.3.4:50051"),
        ("ipv6:[::1]:50051", "[::1]:50051"),
        ("ipv6:///%5B::1%5D:50051", "[::1]:50051"),
        ("ipv6:%5b::1%5d:50051", "[::1]:50051"),
        ("dns:///%5B::1%5D:50051", "[::1]:50051"),
        ("127.0.0.1%3A50051", "127.0.0.1:50051"),
        ("[::ffff:127.0.0.1]:50051", "127.0.0.1:50051"),
        ("ipv6:[::ffff:1.2.3.4]:50051", "1.2.3.4:50051"),
        ("127.0.0.1:00080", "127.0.0.1:80"),
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("127.0.0.1:65535", "127.0.0.1:65535"),
        ("Model-1.Example.ORG:9", "model-1.example.org:9"),
        ("dns:///gpu_1:9", "gpu_1:9"),
        ("[::1]:50051", "[::1]:50051"),
        ("dns:///[::1]:50051", "[::1]:50051"),
        ("[0:0:0:0:0:0:0:1]:50051", "[::1]:50051"),
        ("[2001:DB8::A]:50051", "[2001:db8::a]:50051"),
        ("grpcs://Model-1.example.org:443", "model-1.example.org:443"),
        ("grpcs://localhost:443", "127.0.0.1:443"),
        ("grpcs://[0::1]:443", "[::1]:443"),
        ("dns.example:9", "dns.example:9"),
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("http://LocalHost:8080/v1/", "127.0.0.1:8080"),
        ("http://*:8080", "127.0.0.1:8080"),
        ("http://0.0.0.0:8080/", "127.0.0.1:8080"),
        ("http://[::]:8080", "127.0.0.1:8080"),
        ("http://[::1]", "[::1]:80"),
        ("https://Model-1.example.org", "model-1.example.org:443"),
        ("https://127.0.0.1:08443/a/b", "127.0.0.1:8443"),
        ("unix:/run/b.sock", "unix:/run/b.sock"),
        ("unix:///run/b.sock", "unix:/run/b.sock"),
        ("unix:/run/./x/../b.sock", "unix:/run/b.sock"),
        ("unix:/run//b.sock", "unix:/run/b.sock"),
        ("unix:/run/%62.sock", "unix:/run/b.sock"),
        ("unix:/run%2Fa%20b", "unix:/run/a%20b"),
        ("unix:/run/a?b#c%d", "unix:/run/a%3Fb%23c%25d"),
        ("unix-abstract:a%20b", "unix-abstract:a%20b"),
        ("unix:" + "/" + "a" * 106, "unix:/" + "a" * 106),
        ("unix-abstract:backend", "unix-abstract:backend"),
        ("unix-abstract:" + "a" * 107, "unix-abstract:" + "a" * 107),
    ],
)
def test_each_form_of_address_has_one_canonical_form(address: str, canonical: str) -> None:
    """All documented forms are accepted, and variants of one have the same canonical form."""
    assert canonical_address(address) == canonical


def test_leading_slashes_of_a_socket_path_are_one() -> None:
    """The path names the same file."""
    spellings = ["unix:/s", "unix:///s", "unix:////s", "unix://///s"]
    assert {canonical_address(each) for each in spellings} == {"unix:/s"}


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (None, "must be a string, not NoneType"),
        (50051, "must be a string, not int"),
        (b"127.0.0.1:1", "must be a string, not bytes"),
        ("", "is no gRPC target"),
        ("localhost", "is no gRPC target"),
        ("dns://8.8.8.8/localhost:1", "is no gRPC target"),
        ("GRPCS://localhost:1", "is no gRPC target"),
        ("grpc://localhost:1", "is no gRPC target"),
        ("grpcs://", "is no gRPC target"),
        ("grpcs://localhost", "is no gRPC target"),
        ("grpcs://grpcs://localhost:1", "is no gRPC target"),
        ("grpcs://dns:///localhost:1", "is no gRPC target"),
        ("dns:///grpcs://localhost:1", "is no gRPC target"),
        ("grpcs://unix:/run/b.sock", "the port must be a number from 1 to 65535"),
        ("grpcs://user@localhost:1", "has no user, password, query or fragment"),
        ("grpcs://::1:443", "an IPv6 address stands in brackets"),
        ("grpcs://localhost:0", "the port must be a number from 1 to 65535"),
        ("grpcs://unix:1", "gRPC does not take 'unix' for a host's name"),
        ("dns:///unix.:1", "gRPC does not take 'unix' for a host's name"),
        ("grpcs://unix-abstract:1", "gRPC does not take 'unix-abstract' for a host's name"),
        ("ipv4:80", "gRPC does not take 'ipv4' for a host's name"),
        ("IPv6:80", "gRPC does not take 'ipv6' for a host's name"),
        ("dns:80", "gRPC does not take 'dns' for a host's name"),
        ("localhost:", "the port must be a number from 1 to 65535"),
        ("localhost:0", "the port must be a number from 1 to 65535"),
        ("localhost:65536", "the port must be a number from 1 to 65535"),
        ("localhost:99999", "the port must be a number from 1 to 65535"),
        ("localhost:-1", "the port must be a number from 1 to 65535"),
        ("localhost:http", "the port must be a number from 1 to 65535"),
        ("localhost:١٢", "the port must be a number from 1 to 65535"),
        ("localhost:" + "9" * 5000, "the port must be a number from 1 to 65535"),
        ("local host:1", "holds a space or a control character"),
        ("localhost:1\n", "holds a space or a control character"),
        ("unix:/run/\x00", "holds a space or a control character"),
        ("unix:/run/\ud800", "holds a space or a control character"),
        ("http://", "names no host"),
        ("http:///health", "names no host"),
        ("http://:8080", "names no host"),
        ("https://localhost:0", "the port must be a number from 1 to 65535"),
        ("https://localhost:", "the port must be a number from 1 to 65535"),
        ("http://localhost:80:80", "is no host name or IPv4 address"),
        ("http://::1", "is no host name or IPv4 address"),
        ("http://a@b/c:secret@localhost:80", "has no user, password, query or fragment"),
        ("HTTP://user:secret@localhost:80", "has no user, password, query or fragment"),
        ("user:secret word@localhost:80", "has no user, password, query or fragment"),
        ("http://localhost:80?", "has no user, password, query or fragment"),
        ("http://user:secret@localhost:80", "has no user, password, query or fragment"),
        ("http://localhost:80/?a=b", "has no user, password, query or fragment"),
        ("http://localhost:80#a", "has no user, password, query or fragment"),
        ("http://http://localhost", "the port must be a number from 1 to 65535"),
        ("HTTP://localhost:80", "is no gRPC target or URL"),
        ("http://a b", "holds a space or a control character"),
        ("[::g]:1", "is no IPv6 address"),
        ("[127.0.0.1]:1", "is no IPv6 address"),
        ("::1:50051", "an IPv6 address stands in brackets"),
        ("a..b:1", "is no host name or IPv4 address"),
        ("-a:1", "is no host name or IPv4 address"),
        ("bücher:1", "is no host name or IPv4 address"),
        ("a" * 254 + ":1", "is no host name or IPv4 address"),
        ("127.1:1", "is no IPv4 address"),
        ("256.0.0.1:1", "is no IPv4 address"),
        ("ipv4:[::1]:1", "is no IPv4 address"),
        ("ipv4:localhost:1", "is no IPv4 address"),
        ("ipv4::1", "is no IPv4 address"),
        ("ipv4:1.2.3.4:1,1.2.3.5:1", "is no IPv4 address"),
        ("ipv6:127.0.0.1:1", "is no IPv6 address in brackets"),
        ("ipv6:::1:1", "is no IPv6 address in brackets"),
        ("**:1", "is no host name or IPv4 address"),
        ("unix:", "the socket's path must be absolute"),
        ("unix:/run/%00", "has no NUL"),
        ("unix:run/b.sock", "the socket's path must be absolute"),
        ("unix://run/b.sock", "the socket's path must be absolute"),
        ("unix:/" + "a" * 107, "takes 1 to 107 bytes, not 108"),
        ("unix:/" + "é" * 54, "takes 1 to 107 bytes, not 109"),
        ("unix-abstract:", "takes 1 to 107 bytes, not 0"),
        ("unix-abstract:" + "a" * 108, "takes 1 to 107 bytes, not 108"),
    ],
)
def test_invalid_address_raises_what_is_wrong(address: object, said: str) -> None:
    """The error quotes the address."""
    with pytest.raises(ValueError, match=r"\baddress\b") as caught:
        canonical_address(address)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("address", "hosts", "port", "path"),
    [
        ("http://gpu-1", ("gpu-1",), 80, ""),
        ("https://gpu-1/", ("gpu-1",), 443, ""),
        ("http://localhost:8080/a/b//", ("127.0.0.1", "::1"), 8080, "/a/b"),
        ("http://[2001:DB8::A]:1/p", ("2001:db8::a",), 1, "/p"),
    ],
)
def test_url_has_hosts_a_port_and_a_path(
    address: str, hosts: tuple[str, ...], port: int, path: str
) -> None:
    """The path is that below which a server is asked, and has no slash at the end."""
    target = parse_address(address)
    assert (target.path, target.hosts, target.port, target.url_path) == (None, hosts, port, path)
    assert is_http(address)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        (":8080", "http://localhost:8080"),
        ("dns:///gpu-1:8080", "http://gpu-1:8080"),
        ("ipv6:[::1]:8080", "http://[::1]:8080"),
        ("unix:/run/b.sock", None),
    ],
)
def test_grpc_target_has_a_url_unless_it_is_a_socket(address: str, url: str | None) -> None:
    """The log names it where a server at a gRPC address speaks HTTP."""
    assert http_url(address) == url
    assert url is None or canonical_address(url) == canonical_address(address)


def test_error_about_an_unknown_form_lists_the_forms() -> None:
    """Who gave a form that is not known reads which are."""
    with pytest.raises(ValueError, match="is no gRPC target") as caught:
        canonical_address("nonsense")
    assert FORMS in str(caught.value)


@given(st.text())
def test_canonical_form_of_any_text_is_a_fixed_point(text: str) -> None:
    """No text raises anything but ValueError, and a canonical form is its own canonical form."""
    for address in (text, f"{text}:1", f"[{text}]:1", f"unix:/{text}", f"unix-abstract:{text}"):
        refuse_or_fix(address)


_PARTS = st.sampled_from(
    [
        *(
            "grpcs://",
            "dns:///",
            "dns:",
            "unix:",
            "unix:///",
            "unix-abstract:",
            "http://",
            "https://",
        ),
        *("ipv4:", "ipv4:///", "ipv6:", "ipv6:///", "*", "%5B", "%5D", "%3A", "%20", "%00", "?"),
        *(
            "localhost",
            "a.localhost",
            "127.0.0.1",
            "0.0.0.0",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::]",
        ),
        *("[fe80::1%eth0]", "[::1%", "gpu-1.example", "a" * 250, "unix", "dns", "/run/b.sock"),
        *(
            ":",
            ":1",
            ":00080",
            ":65536",
            ":-1",
            ".",
            "..",
            "/",
            "@",
            "[",
            "]",
            "%",
            "%25",
            " ",
            "\0",
        ),
    ]
)


@given(st.lists(_PARTS | st.text(max_size=3), max_size=6).map("".join))
def test_canonical_form_of_any_mixture_of_forms_is_a_fixed_point(address: str) -> None:
    """Combined parts of addresses raise nothing but ValueError."""
    refuse_or_fix(address)


def refuse_or_fix(address: str) -> None:
    try:
        canonical = canonical_address(address)
    except ValueError:
        return
    assert canonical_address(canonical) == canonical
    assert not canonical.startswith("grpcs://")
    assert is_local(canonical) in (True, False)
    if address.startswith("grpcs://"):  # the same backend, in the clear
        assert canonical_address(address.removeprefix("grpcs://")) == canonical
        assert not canonical.startswith("unix")


@given(st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | st.lists(st.text()))
def test_address_of_another_type_raises_an_error(address: object) -> None:
    """It is a ValueError for every type."""
    with pytest.raises(ValueError, match="must be a string"):
        canonical_address(address)


@pytest.mark.parametrize(
    "address",
    [
        *("unix:/run/b.sock", "unix:///run/b.sock", "unix-abstract:b"),
        *("localhost:1", "LOCALHOST:1", "dns:///localhost:1"),
        *("127.0.0.1:1", "127.255.255.254:1", "dns:///127.1.2.3:1", "0.0.0.0:1"),
        *("[::1]:1", "[0:0:0:0:0:0:0:1]:1", "dns:///[::1]:1", "[::]:1"),
        *("[::ffff:127.0.0.1]:1", "[::ffff:7f00:2]:1"),
    ],
)
def test_loopback_addresses_and_sockets_are_local(address: str) -> None:
    """Every spelling counts, also of unspecified addresses, which reach loopback."""
    assert is_local(canonical_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("gpu1:1", "gpu-1.example.org:1", "dns:///gpu1:1", "unix.example:1", "gpu.localhost:1"),
        *("localhost.example.org:1", "notlocalhost:1", "localhost-1:1", "127.0.0.1.example.org:1"),
        *("0x7f000001:1", "128.0.0.1:1", "192.0.2.2:1", "10.0.0.1:1", "0.0.0.1:1", "169.254.0.1:1"),
        *("[::2]:1", "[fe80::1]:1", "[fe80::1%eth0]:1", "[::1%gpu.example.org]:1"),
        *("[::ffff:192.0.2.2]:1", "[::127.0.0.1]:1", "[64:ff9b::7f00:1]:1", "[2001:db8::1]:1"),
    ],
)
def test_other_addresses_are_not_local(address: str) -> None:
    """Names are not resolved."""
    assert not is_local(canonical_address(address))


@given(st.ip_addresses(v=6), st.integers(1, 65535))
def test_ipv6_address_has_one_canonical_form(address: IPv6Address, port: int) -> None:
    """Its spelling may be long or short, in capitals or not."""
    assume(not address.ipv4_mapped and not address.is_unspecified)
    short, long = str(address), address.exploded
    forms = {canonical_address(f"[{each}]:{port}") for each in (short, long, long.upper())}
    assert forms == {f"[{short}]:{port}"}


@given(st.text(alphabet="/.ab", max_size=20))
def test_a_canonical_socket_path_is_absolute_and_simple(path: str) -> None:
    """A canonical socket path has one leading slash, and no part that is `.`, `..` or empty."""
    canonical = canonical_address("unix:///" + path)
    assert canonical.startswith("unix:/")
    rest = canonical.removeprefix("unix:/")
    assert rest == "" or not {"", ".", ".."} & set(rest.split("/"))
