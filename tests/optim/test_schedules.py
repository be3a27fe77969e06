"""Schedules at steps where their value can be worked out by hand (Gao et al. 2025, appendix A.2)."""

import math

import pytest

from sparsekern.optim import Anneal, sharkfin, warmup_decay

PUBLISHED = {"shape": "linear", "start": 0.01, "end": 0.5}


@pytest.mark.parametrize(
    ("step", "density"),
    [(0, 1.0), (10, 1.0), (11, 0.998), (255, 0.51), (378, 0.264), (500, 0.02), (501, 0.02), (1000, 0.02)],
)
def test_linear_anneal_of_the_published_window(step: int, density: float) -> None:
    assert Anneal(**PUBLISHED) == Anneal()
    assert Anneal().density(step, 1000, 0.02) == pytest.approx(density, rel=1e-3)


@pytest.mark.parametrize(
    ("step", "density"), [(0, 1.0), (100, 1.0), (300, 0.1), (200, 0.1**0.5), (500, 0.01), (999, 0.01)]
)
def test_geometric_anneal(step: int, density: float) -> None:
    assert Anneal("geometric", 0.1, 0.5).density(step, 1000, 0.01) == pytest.approx(density)


@pytest.mark.parametrize(
    ("target", "step", "density"),
    [
        (0.002, 0, 1.0),
        (0.002, 50, 0.1**0.5),  # half of the first fifth, towards 10 %
        (0.002, 100, 0.1),
        (0.002, 300, math.sqrt(0.1 * 0.002)),
        (0.002, 500, 0.002),
        (0.05, 100, 0.5),  # ten times the target is more than 10 %
        (0.05, 300, math.sqrt(0.5 * 0.05)),
        (0.25, 100, 0.25**0.2),  # ten times the target is more than all: geometric throughout
        (0.25, 700, 0.25),
    ],
)
def test_fast_anneal(target: float, step: int, density: float) -> None:
    assert Anneal("fast", 0.0, 0.5).density(step, 1000, target) == pytest.approx(density)


@pytest.mark.parametrize("shape", ["linear", "geometric", "fast"])
@pytest.mark.parametrize("target", [0.001, 0.05, 0.3, 1.0])
def test_anneals_fall_from_one_to_the_target(shape: str, target: float) -> None:
    anneal = Anneal(shape, 0.1, 0.6)
    densities = [anneal.density(step, 200, target) for step in range(201)]
    assert densities == sorted(densities, reverse=True)
    assert densities[:21] == [1.0] * 21
    assert densities[120:] == pytest.approx([target] * 81, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.0), (5, 0.5 * 0.995), (10, 0.99), (500, 0.5), (750, 0.25), (1000, 0.0)]
)
def test_warmup_and_decay(step: int, factor: float) -> None:
    assert warmup_decay(step, 1000) == pytest.approx(factor)


def test_warmup_may_be_longer_or_absent() -> None:
    assert warmup_decay(50, 1000, warmup=0.1) == pytest.approx(0.5 * 0.95)
    assert warmup_decay(0, 1000, warmup=0) == 1.0


def test_sharkfin_is_one_over_the_root_of_the_nonzeros() -> None:
    assert sharkfin(0.25, 0.01) == pytest.approx(0.2)
    assert sharkfin(1.0, 1 / 64) == pytest.approx(1 / 8)
    assert sharkfin(0.02, 0.02) == 1.0


@pytest.mark.parametrize("target", [1 / 64, 1 / 512])
def test_learning_rate_peaks_where_the_anneal_ends(target: float) -> None:
    steps = 10_000
    rates = [warmup_decay(s, steps) * sharkfin(Anneal().density(s, steps, target), target) for s in range(steps)]
    peak = max(range(steps), key=rates.__getitem__)
    assert peak == steps // 2
    assert rates[peak] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.99 * math.sqrt(target))  # the warm-up is over, the weights are dense
    assert max(rates[: peak - 100]) < 0.7 * rates[peak]  # a fin, not a plateau
    assert rates[7500] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "cubic"}, "anneal shape must be linear, geometric or fast, got 'cubic'"),
        ({"start": 0.5, "end": 0.5}, "0 <= start < end < 1, got start=0.5, end=0.5"),
        ({"start": -0.1}, "0 <= start < end < 1, got start=-0.1"),
        ({"end": 1.1}, "0 <= start < end < 1, got start=0.01, end=1.1"),
        ({"start": float("nan")}, "0 <= start < end < 1"),
    ],
)
def test_bad_anneals_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Anneal(**arguments)
