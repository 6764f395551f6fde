from __future__ import annotations

import socket
from types import SimpleNamespace

import psutil
import pytest

from balsam_core.errors import Conflict, InvalidInput
from balsam_core.system import network
from balsam_core.system.network import advertised, choose_port, is_wildcard, listening_host


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_free_port_is_chosen_each_time():
    assert 0 < choose_port("127.0.0.1") <= 65535


def test_the_preferred_port_is_taken_if_it_is_free(taken):
    assert choose_port("127.0.0.1", preferred=taken) != taken
    free = choose_port("127.0.0.1")
    assert choose_port("127.0.0.1", preferred=free) == free
    assert choose_port("127.0.0.1", fixed=free) == free


def test_a_fixed_port_that_is_taken_is_refused(taken):
    with pytest.raises(Conflict, match=f"the port {taken} of localhost is taken.*--port"):
        choose_port("localhost", fixed=taken)


def test_fading_connections_do_not_count():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server, _ = listener.accept()
            server.close()  # first: the fading stays on this side
            assert client.recv(1) == b""
    assert choose_port("127.0.0.1", fixed=port) == port


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "a b", "x" * 300])
def test_a_host_that_is_not_this_machine_is_refused(host):
    with pytest.raises(InvalidInput, match="--host"):
        choose_port(host)


@pytest.mark.parametrize(
    ("given", "published"),
    [
        ("localhost", "127.0.0.1"),
        ("LocalHost.", "127.0.0.1"),
        ("localhost6", "::1"),
        ("ip6-localhost", "::1"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("[::]", "::"),
        ("0.0.0.0", "0.0.0.0"),
        (" 10.1.2.3 ", "10.1.2.3"),
        ("login1", "login1"),
        ("*", "*"),
    ],
)
def test_a_host_to_listen_on_has_one_form(given, published):
    assert listening_host(given) == published


def test_wildcards():
    assert [is_wildcard(host) for host in ("0.0.0.0", "::", "*", "", "127.0.0.1", "::1", "login1")] == [
        *[True] * 4,
        *[False] * 3,
    ]


def test_what_is_no_wildcard_is_advertised_as_it_is():
    assert [advertised(host) for host in ("127.0.0.1", "login1", "::1")] == ["127.0.0.1", "login1", "::1"]


def named(monkeypatch, *addresses):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)


def test_a_wildcard_is_advertised_as_the_address_of_the_name(monkeypatch):
    named(monkeypatch, "127.0.1.1", "10.1.2.3")
    assert advertised("0.0.0.0") == "10.1.2.3"


def test_else_as_some_address_that_is_not_loopback(monkeypatch):
    named(monkeypatch, "127.0.1.1")
    monkeypatch.setattr(network, "_address_of_default_route", lambda family: iter(()))
    monkeypatch.setattr(
        psutil,
        "net_if_addrs",
        lambda: {
            "lo": [SimpleNamespace(family=socket.AF_INET, address="127.0.0.1")],
            "eth0": [
                SimpleNamespace(family=socket.AF_INET6, address="2001:db8::7"),
                SimpleNamespace(family=socket.AF_INET, address="169.254.1.1"),
                SimpleNamespace(family=socket.AF_INET, address="10.4.5.6"),
            ],
        },
    )
    assert advertised("0.0.0.0") == "10.4.5.6"
    monkeypatch.setattr(psutil, "net_if_addrs", dict)
    assert advertised("0.0.0.0") == "127.0.0.1"
