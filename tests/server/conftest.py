"""One server for all tests that need no other."""

from __future__ import annotations

import pytest
from serving import client_of, serving


@pytest.fixture(scope="session")
def server(tiny):
    """Its address."""
    with serving(lambda name: tiny) as url:
        yield url


@pytest.fixture
def client(server):
    """OpenAI's client of it."""
    with client_of(server) as client:
        yield client
