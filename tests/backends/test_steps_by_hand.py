"""NumPy steps by hand: windows, clips, scales, bad batches, precisions and what they write into."""

import numpy as np
import pytest
from by_hand import gradient, loss

from pytest_gradcheck import Training, check_step

CLAIMS = {"optimizer": "adamw", "lr": 1e-2, "weight_decay": 0.1, "eps": 1e-3}


def codes(result, *severities):
    return {f.code for f in result.findings if f.severity in (severities or ("fail",))}


def training(*, window=1, fault="", max_norm=None, scale=1.0, dtype=np.float64, policy=None):
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 5), "b": (5,), "v": (5, 2)}
    params = {k: rng.normal(size=s).astype(dtype) for k, s in shapes.items()}
    sizes = (6, 3, 7, 2)
    batches = [tuple(rng.normal(size=(n, k)).astype(dtype) for k in (4, 2)) for n in sizes]
    zeros = {k: np.zeros_like(x) for k, x in params.items()}
    state = {"t": 0, "m": zeros, "v": zeros, "sum": zeros, "n": 0, "calls": 0}

    def clipped(g):
        if max_norm is None or fault == "clip missing":
            return g
        if fault == "clip each":
            return {k: x * min(1.0, max_norm / np.linalg.norm(x)) for k, x in g.items()}
        size = np.sqrt(sum(np.sum(x**2) for x in g.values()))
        return {k: x * min(1.0, max_norm / size) for k, x in g.items()}

    def step(p, s, batch):
        g = {k: x * scale for k, x in gradient(p, batch).items()}
        finite = all(np.isfinite(x).all() for x in g.values())
        if not finite and policy == "skip":
            return p, s
        if not finite and policy == "raise":
            raise FloatingPointError("not finite")
        n = 1 if fault == "equal" else len(batch[0])
        total = {k: s["sum"][k] + n * g[k] for k in g}
        s = {**s, "sum": total, "n": s["n"] + n, "calls": s["calls"] + 1}
        if s["calls"] % window:
            return p, s
        g = {k: x / s["n"] for k, x in total.items()}
        if fault != "scaled":
            g = {k: x / scale for k, x in g.items()}
        g, t = clipped(g), s["t"] + 1
        m = {k: 0.9 * s["m"][k] + 0.1 * g[k] for k in g}
        v = {k: 0.999 * s["v"][k] + 0.001 * g[k] ** 2 for k in g}
        q = {}
        for k in g:
            root = np.sqrt(v[k] / (1 - 0.999**t)) + 1e-3
            q[k] = p[k] * (1 - 1e-3) - 1e-2 * m[k] / (1 - 0.9**t) / root
        return {k: x.astype(dtype) for k, x in q.items()}, {
            **s, "t": t, "m": m, "v": v, "sum": zeros, "n": 0,
        }  # fmt: skip

    return Training(step=step, loss=loss, batches=batches, params=params, opt_state=state)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("max_norm", [None, 0.1])
def test_right_loops(dtype, window, max_norm):
    result = check_step(
        lambda: training(window=window, max_norm=max_norm, scale=256.0, dtype=dtype),
        accumulate=window,
        max_norm=max_norm,
        loss_scale=256.0,
        **CLAIMS,
    )
    assert result.verdict == "pass", result.headline


WRONG = {
    "clip missing": ({"max_norm": 0.1}, "step-not-clipped"),
    "clip each": ({"max_norm": 0.1}, "step-clip-kind"),
    "scaled": ({"loss_scale": 256.0}, "step-gradient-scale"),
    "equal": ({"accumulate": 2}, "step-weights"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_loops(fault):
    claims, code = WRONG[fault]
    made = {"max_norm": claims.get("max_norm"), "window": claims.get("accumulate", 1)}
    result = check_step(
        lambda: training(fault=fault, scale=claims.get("loss_scale", 1.0), **made),
        **claims,
        **CLAIMS,
    )
    assert codes(result) == {code}, result.headline


@pytest.mark.parametrize("policy", ["skip", "raise", "propagate"])
def test_a_bad_batch_in_the_middle(policy):
    right = check_step(lambda: training(policy=policy), nonfinite=policy, **CLAIMS)
    assert right.verdict == "pass", right.headline
    if policy != "propagate":
        wrong = check_step(lambda: training(), nonfinite=policy, **CLAIMS)
        assert codes(wrong) == {"step-nonfinite"}, wrong.headline


def test_gradients_of_zero_say_nothing():
    def still():
        made = training()
        zeros = [(np.zeros_like(x), np.zeros_like(y)) for x, y in made.batches]
        return Training(**{**vars(made), "batches": zeros, "loss": lambda p, b: 0.0 * loss(p, b)})

    assert check_step(still, **CLAIMS).verdict == "vacuous"


class Adam:
    """As many write it: moments in attributes, one pair for each parameter or two dictionaries."""

    def __init__(self, params, is_paired):
        self.count, self.is_paired = 0, is_paired
        zeros = np.zeros_like
        if is_paired:
            self.moments = {k: [zeros(x), zeros(x)] for k, x in params.items()}
        else:
            self.m, self.v = ({k: zeros(x) for k, x in params.items()} for _ in range(2))

    def moved(self, params, grads):
        self.count += 1
        for k, g in grads.items():
            m, v = self.moments[k] if self.is_paired else (self.m[k], self.v[k])
            m[:], v[:] = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            root = np.sqrt(v / (1 - 0.999**self.count)) + 1e-8
            params[k] -= 1e-2 * m / (1 - 0.9**self.count) / root


class Momentum:
    """With the learning rate in the velocity."""

    def __init__(self, params):
        self.velocity = {k: np.zeros_like(x) for k, x in params.items()}

    def moved(self, params, grads):
        for k, g in grads.items():
            self.velocity[k] = 0.9 * self.velocity[k] - 0.05 * g
            params[k] += self.velocity[k]


OBJECTS = {
    "two dictionaries": (lambda p: Adam(p, False), {"optimizer": "adam", "lr": 1e-2}),
    "in pairs": (lambda p: Adam(p, True), {"optimizer": "adam", "lr": 1e-2}),
    "velocity": (Momentum, {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9}),
}
MISTAKES = {
    "": (lambda g: g, ""),
    "sign": (lambda g: {**g, "b": -g["b"]}, "b received the negative of the right gradient"),
    "missing": (lambda g: {**g, "v": 0 * g["v"]}, "v received no gradient"),
    "a row": (lambda g: {**g, "w": g["w"] * (np.arange(4) > 0)[:, None]}, "another gradient"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("kind", OBJECTS)
def test_what_an_optimizer_of_a_class_of_its_own_received(kind, mistake):
    make, claims = OBJECTS[kind]
    change, told = MISTAKES[mistake]

    def built():
        made = training()
        params = {k: x.copy() for k, x in made.params.items()}

        def step(p, state, batch):
            state.moved(p, change(gradient(p, batch)))
            return p, state

        return Training(
            step=step, loss=loss, batches=made.batches, params=params, opt_state=make(params)
        )

    result = check_step(built, **claims)
    assert (result.verdict == "pass") == (not mistake), result.headline
    assert told in result.headline


def test_parameters_without_a_name_are_called_so():
    def built():
        rng = np.random.default_rng(0)
        batches = [(rng.normal(size=(n, 3)), rng.normal(size=n)) for n in (8, 8, 5)]

        def of(w, batch):
            return np.mean((batch[0] @ w - batch[1]) ** 2)

        def step(w, state, batch):
            residual = batch[0] @ w - batch[1]
            return w - 0.1 * batch[0].T @ residual / len(residual), state

        return Training(step=step, loss=of, batches=batches, params=rng.normal(size=3))

    result = check_step(built, optimizer="sgd", lr=0.1)
    assert "0.05, not the claimed 0.1, or the gradient is 0.5 times the right" in result.headline
    assert "in params" in result.headline


def test_a_sum_for_a_mean_shows_in_the_rates_of_unequal_batches():
    def summed():
        made = training()

        def step(params, state, batch):
            rate, grads = 0.01 * len(batch[0]), gradient(params, batch)
            return {k: x - rate * grads[k] for k, x in params.items()}, state

        return Training(**{**vars(made), "step": step})

    found = check_step(summed)
    assert "step-gradient-sum" in {f.code for f in found.findings}, found.headline


@pytest.mark.parametrize("claims", [{}, {"optimizer": "sgd", "lr": 1.0}], ids=["seen", "claimed"])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_perceptron_begins_at_a_kink(claims, factor):
    # Rosenblatt's rule from zero: half of the slope on the one side is what differences give there.
    rng = np.random.default_rng(0)
    points = rng.normal(size=(20, 3))
    labels = np.sign(points @ np.array([1.0, -1.0, 0.5]) + 0.2)

    def step(params, state, batch):
        x, label = batch
        if label * (x @ params["w"] + params["b"]) <= 0:
            rate = factor if state > 2 else 1.0
            params = {"w": params["w"] + rate * label * x, "b": params["b"] + rate * label}
        return params, state + 1

    def made():
        return Training(
            step=step,
            loss=lambda p, b: max(0.0, -b[1] * (b[0] @ p["w"] + p["b"])),
            batches=list(zip(points, labels, strict=True)),
            params={"w": np.zeros(3), "b": 0.0},
            opt_state=0,
        )

    found = check_step(made, **claims)
    if factor == 1.0:
        assert found.verdict == "pass", found.headline
    elif claims:
        assert found.verdict == "fail", found.headline
    else:
        assert "every update is 2 times the right gradient" in found.headline


def rectified(window, clip, factor=1.0):
    """Rectifiers, of which rows of padding and no biases leave each one exactly at its kink."""
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(4, 5)), "b": np.zeros(5), "v": rng.normal(size=(5, 1))}
    batches = [(rng.normal(size=(n, 4)), rng.normal(size=(n, 1))) for n in (6, 6, 6, 3)]
    for x, _ in batches:
        x[0] = 0.0

    def loss(p, batch):
        x, y = batch
        return np.mean((np.maximum(x @ p["w"] + p["b"], 0) @ p["v"] - y) ** 2)

    def added(p, batch):
        x, y = batch
        z = x @ p["w"] + p["b"]
        r = 2 * (np.maximum(z, 0) @ p["v"] - y)
        d = (r @ p["v"].T) * (z > 0) * factor
        return {"w": x.T @ d, "b": d.sum(0), "v": np.maximum(z, 0).T @ r}

    def step(p, s, batch):
        grads = added(p, batch)
        total = {k: s["sum"][k] + grads[k] for k in grads}
        s = {"sum": total, "n": s["n"] + len(batch[0]), "calls": s["calls"] + 1}
        if s["calls"] % window:
            return p, s
        g = {k: x / s["n"] for k, x in total.items()}
        size = np.sqrt(sum(np.sum(x**2) for x in g.values()))
        share = min(1.0, clip / size) if clip else 1.0
        cleared = {k: np.zeros_like(x) for k, x in p.items()}
        new = {k: x - 0.05 * share * g[k] for k, x in p.items()}
        return new, {"sum": cleared, "n": 0, "calls": s["calls"]}

    start = {"sum": {k: np.zeros_like(x) for k, x in params.items()}, "n": 0, "calls": 0}
    return Training(step=step, loss=loss, batches=batches, params=params, opt_state=start)


@pytest.mark.parametrize("clip", [None, 0.5, 50.0])
@pytest.mark.parametrize("window", [1, 2])
def test_kinks_are_doubted_in_windows_and_in_clips(window, clip):
    claims = {"optimizer": "sgd", "lr": 0.05, "accumulate": window, "max_norm": clip}
    right = check_step(lambda: rectified(window, clip), **claims)
    assert right.verdict == "pass", right.headline
    wrong = check_step(lambda: rectified(window, clip, 1.3), **claims)
    assert wrong.verdict == "fail", wrong.headline


@pytest.mark.parametrize("bound", [0.1, 5.0])
def test_kinks_are_doubted_in_clips_by_value(bound):
    """Beside one that is far longer: a clip by value leaves what is small as it is."""

    def built():
        made = rectified(1, None)

        def step(p, s, batch):
            after, _ = made.step({k: p[k] for k in made.params}, made.opt_state, batch)
            g = {k: (p[k] - x) / 0.05 for k, x in after.items()} | {"c": np.array([1e3, 5e2])}
            return {k: x - 0.05 * np.clip(g[k], -bound, bound) for k, x in p.items()}, s

        return Training(
            step=step,
            loss=lambda p, batch: made.loss(p, batch) + 1e3 * (p["c"][0] + p["c"][1] / 2),
            batches=made.batches,
            params={**made.params, "c": np.array([1.0, 2.0])},
        )

    result = check_step(built, optimizer="sgd", lr=0.05, max_value=bound)
    assert result.verdict == "pass", result.headline


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_a_parameter_that_stays_at_its_kink(scale):
    """The rule of a rectifier at zero is zero; a gradient that is lost beside it is told."""
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(6, 4)), rng.normal(size=6)) for _ in range(4)]

    def loss(p, batch):
        x, y = batch
        return 3 * np.maximum(p["a"], 0).sum() + np.mean((x @ p["w"] - y) ** 2)

    def step(p, s, batch):
        x, y = batch
        g = {"a": 3.0 * (p["a"] > 0), "w": scale * 2 * x.T @ (x @ p["w"] - y) / len(y)}
        return {k: v - 0.01 * g[k] for k, v in p.items()}, s

    params = {"a": np.zeros(3), "w": rng.normal(size=4)}
    training = Training(step=step, loss=loss, batches=batches, params=params)
    result = check_step(training, optimizer="sgd", lr=0.01)
    assert result.verdict == ("pass" if scale else "fail"), result.headline
    told = {f.where: f.code for f in result.findings if f.severity == "warn"}
    assert not scale or told["a"] == "step-unused"
