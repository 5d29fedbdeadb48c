from __future__ import annotations

import pytest

from bhive_mltf.models import registry

# the same network as another row of the table, with other classes or sizes
VARIANTS = {name for name in registry.names() if name.startswith("ParticleTransformer2_LT_")}


@pytest.fixture(params=sorted(set(registry.names()) - VARIANTS))
def name(request):
    """Each network of the registry."""
    return request.param
