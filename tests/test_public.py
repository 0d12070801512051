"""The public face is what it says it is."""

from __future__ import annotations

import aios_adapters as aios


def test_the_public_names_are_sorted_and_there() -> None:
    assert aios.__all__ == sorted(aios.__all__)
    assert all(hasattr(aios, name) for name in aios.__all__)
    assert len(aios.__all__) <= 20
