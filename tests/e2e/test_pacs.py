"""Studies on a real PACS: what `make demo-pacs` starts, and what the server does with it."""

import socket

import psutil
import pytest
import requests

from medclipsam.demo.pacs import Orthanc


def test_orthanc_listens_on_this_machine_only_and_asks_for_a_password(orthanc: Orthanc) -> None:
    listening = [
        connection.laddr
        for connection in psutil.net_connections("tcp")
        if connection.status == "LISTEN" and connection.laddr.port == orthanc.port
    ]
    assert [address.ip for address in listening] == ["127.0.0.1"]
    others = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    for address in others:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((address, orthanc.port), timeout=5)
    assert requests.get(f"{orthanc.url}/studies", timeout=10).status_code == 401
    assert (orthanc.folder / "orthanc.json").stat().st_mode & 0o077 == 0
