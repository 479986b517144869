"""Sharpness along the way: of a loss whose Hessian is known."""

import numpy as np
import pytest

from pytest_gradcheck import Training, check_step

RATES = [0.01 * (k + 1) for k in range(7)]


def training(kind, steep=4.0):
    """Plain gradient descent on a paraboloid, whose middle is another one in each batch."""
    xp = np if kind == "numpy" else pytest.importorskip("jax.numpy")
    rng = np.random.default_rng(0)
    scales = np.array([steep, 1.0, 0.5, 0.1])
    batches = [(rng.normal(size=(5, 4)),) for _ in range(7)]

    def loss(params, batch):
        return xp.mean(xp.sum(scales * (params["x"] - batch[0]) ** 2, axis=1)) / 2

    def step(params, count, batch):
        gradient = xp.mean(scales * (params["x"] - batch[0]), axis=0)
        return {"x": params["x"] - 0.01 * (count + 1) * gradient}, count + 1

    params = {"x": xp.asarray(rng.normal(size=4))}
    return Training(step=step, loss=loss, batches=batches, params=params, opt_state=xp.asarray(0.0))


@pytest.mark.parametrize("kind", ["numpy", "jax"])
def test_at_the_start_in_the_middle_and_at_the_end(kind):
    result = check_step(lambda: training(kind), optimizer="sgd", schedule=RATES)
    assert result.verdict == "pass", result.headline
    rows = result.table("sharpness").rows
    assert [row[0] for row in rows] == ["1", "4", "7"]
    for row, rate in zip(rows, (0.01, 0.04, 0.07), strict=True):
        assert 0.8 * 4 < row[1] <= 4.0 * 1.001
        assert row[2] == pytest.approx(rate * row[1])
    (found,) = (f for f in result.findings if f.code == "step-sharpness")
    assert found.severity == "note"
    assert all(word in found.message for word in ("start", "middle", "end", "lr times it 0.0"))
    assert found.number("product") == rows[0][2]


def test_a_step_beyond_the_stable_rate_is_told_and_passes():
    result = check_step(lambda: training("numpy", 100.0), optimizer="sgd", schedule=RATES)
    assert result.verdict == "pass", result.headline
    assert result.table("sharpness").rows[-1][2] > 2


def test_a_rate_that_is_not_known():
    result = check_step(lambda: training("numpy"))
    (found,) = (f for f in result.findings if f.code == "step-sharpness")
    assert "the learning rate is not known" in found.message


def large(count, is_moved=False):
    """100 000 parameters on a paraboloid, steep in half of its directions."""
    rng = np.random.default_rng(0)
    scales = np.repeat([4.0, 1.0], 50_000)
    moved = []

    def loss(params, batch):
        far = 1e3 * len(moved) if is_moved else 0.0
        return np.sum(scales * (params["x"] - batch) ** 2) / 2 + far

    def gradient(params, batch):
        return {"x": scales * (params["x"] - batch)}

    def step(params, count, batch):
        moved.append(1)
        return {"x": params["x"] - 0.01 * gradient(params, batch)["x"]}, count + 1

    batches = [rng.normal(size=100_000) for _ in range(count)]
    params = {"x": rng.normal(size=100_000)}
    return Training(
        step=step, loss=loss, batches=batches, params=params, opt_state=0.0, grad=gradient
    )


@pytest.mark.parametrize(("count", "updates"), [(7, ["1"]), (14, ["1", "14"])])
def test_a_large_network_is_asked_at_the_start_and_at_the_end_of_many_updates(count, updates):
    result = check_step(lambda: large(count), optimizer="sgd", lr=0.01)
    assert result.verdict == "pass", result.headline
    rows = result.table("sharpness").rows
    assert [row[0] for row in rows] == updates
    # |H g| / |g| for a gradient of equal displacements: sqrt((4**4 + 1) / (4**2 + 1)).
    assert all(row[1] == pytest.approx(np.sqrt(257 / 17), rel=1e-2) for row in rows)
    (found,) = (f for f in result.findings if f.code == "step-sharpness")
    assert ("at the end" in found.message) == (len(updates) == 2)
    assert "at the start" in found.message


def test_a_loss_that_has_moved_beside_its_parameters_has_no_sharpness():
    result = check_step(lambda: large(7, is_moved=True), optimizer="sgd", lr=0.01)
    assert result.verdict == "pass", result.headline
    assert not any(f.code == "step-sharpness" for f in result.findings)
