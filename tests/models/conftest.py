from __future__ import annotations

import pytest

from bhive_mltf.models import registry


@pytest.fixture(params=registry.names())
def name(request):
    """Each model of the registry."""
    return request.param
