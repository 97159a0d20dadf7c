"""The fixture ``adapter``: a test that takes it runs once for each installed protocol."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest


@pytest.fixture(params=sorted({point.name for point in entry_points(group="mailgate.adapters")}))
def adapter(request: pytest.FixtureRequest) -> str:
    """The name of an installed protocol, for ``send(policy, adapter=adapter)``."""
    name: str = request.param
    return name
