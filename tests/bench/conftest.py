"""What all tests of benchmarks share."""

import pytest


@pytest.fixture(autouse=True)
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that emptying it takes no time."""
    monkeypatch.setattr("sparsekern.bench.timer.l3_bytes", lambda: 1 << 12)
