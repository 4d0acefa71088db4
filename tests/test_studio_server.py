"""Where the page of scripts/app.py listens: a port that is free, on an address of this machine."""

import socket

import pytest

from configs.errors import UserError
from scripts.studio.server import choose_port


def test_a_busy_port_names_the_next_free_one():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(UserError, match=rf"{port} is in use; \d+ is free: give --port"):
            choose_port("127.0.0.1", port)
    assert choose_port("127.0.0.1", port) == port


@pytest.mark.parametrize("port", [-1, 0, 65536, 70000])
def test_a_number_that_no_port_has_is_one_sentence(port):
    with pytest.raises(UserError, match=rf"--port: {port} is not from 1 to 65535; give"):
        choose_port("127.0.0.1", port)


def test_the_last_port_can_be_asked_for(monkeypatch):
    monkeypatch.setattr(socket.socket, "bind", lambda *_: None)
    assert choose_port("127.0.0.1", 65535) == 65535


@pytest.mark.parametrize("port", [None, 7860])
@pytest.mark.parametrize(
    "host", ["no.such.host.invalid", "203.0.113.1", "\u00fc" * 70], ids=["unknown", "elsewhere", "no name"]
)
def test_a_host_that_cannot_be_bound_is_named_and_no_port_is_blamed(host, port):
    with pytest.raises(UserError) as error:
        choose_port(host, port)
    text = str(error.value)
    assert (
        text.startswith(f"--host: nothing can listen on '{host}'") and "give 127.0.0.1" in text and "port" not in text
    )
