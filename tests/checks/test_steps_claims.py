"""Steps in torch: claims that nothing uses, bad input, optimizers with habits of their own."""

import importlib

import pytest

from pytest_gradcheck import Training, UsageError, check_step

torch = pytest.importorskip("torch")
pytest.importorskip("optax")
loops = importlib.import_module("loops")
loop, STEP = loops.loop, loops.STEP
nn, F, T = torch.nn, torch.nn.functional, torch.optim
BACK = "opt.zero_grad(); loss(batch).backward(); "


def codes(result, *severities):
    return {f.code for f in result.findings if f.severity in (severities or ("fail", "warn"))}


# --- claims -----------------------------------------------------------------------------------

WRONG_KINDS = {
    "betas": 0.9,
    "lr": "x",
    "schedule": 5,
    "momentum": "much",
    "weight_decay": [0.1],
    "eps": (1e-8,),
    "nesterov": "yes",
    "hyper": 3,
    "max_norm": "a",
    "norm_type": "spectral",
    "max_value": True,
    "accumulate": True,
    "weights": 3,
    "frozen": 3,
    "no_decay": 1.5,
    "loss_scale": "large",
    "nonfinite": 1,
    "semi_gradient": True,
}


@pytest.mark.parametrize("claim", WRONG_KINDS)
def test_a_claim_of_the_wrong_kind_is_refused_by_name(claim):
    with pytest.raises(UsageError, match=claim):
        loop(STEP, **{claim: WRONG_KINDS[claim]})


WRONG_VALUES = {
    "one beta": {"betas": (0.9,)},
    "a beta above 1": {"betas": (0.9, 1.5)},
    "nan": {"lr": float("nan")},
    "no rates": {"schedule": []},
    "a rate in words": {"schedule": ["x"]},
    "a schedule that gives nothing": {"schedule": lambda t: None},
    "inside hyper": {"hyper": {"alpha": "x"}},
}


@pytest.mark.parametrize("claims", WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_a_claim_with_a_wrong_value_is_refused(claims):
    name = next(iter(claims))
    with pytest.raises(UsageError, match="alpha" if name == "hyper" else name):
        loop(STEP, **claims)


@pytest.mark.parametrize(
    ("optimizer", "claims", "name"),
    [
        ("AdamW(params, 1e-2)", {"momentum": 0.9}, "momentum"),
        ("SGD(params, 1e-2)", {"betas": (0.9, 0.999)}, "betas"),
        ("Adam(params, 1e-2)", {"nesterov": True}, "nesterov"),
        ("RMSprop(params, 1e-2)", {"hyper": {"rho": 0.9}}, "rho"),
        ("ByHand(params)", {"claimed": "adamw", "hyper": {"dampening": 0.1}}, "dampening"),
    ],
)
def test_a_hyperparameter_that_the_rule_does_not_have_is_refused(optimizer, claims, name):
    with pytest.raises(UsageError, match=f"{name}.* is not used"):
        loop(STEP, optimizer=optimizer, **claims)


def test_the_order_of_a_norm_without_a_norm_is_refused():
    with pytest.raises(UsageError, match=r"norm_type=1.0 .*max_norm="):
        loop(STEP, norm_type=1.0)


@pytest.mark.parametrize(
    ("body", "claims"),
    [
        (STEP, {"schedule": [1e-2, 1e-2]}),
        (STEP, {"optimizer": "Rprop(params, 1e-3)", "lr": 1e-3}),
        (STEP, {"weights": "batches"}),
        (STEP, {"semi_gradient": "no reason"}),
    ],
)
def test_a_claim_that_nothing_uses_is_told(body, claims):
    result = loop(body, **claims)
    assert result.verdict == "pass", result.headline
    assert "weak-claim" in codes(result, "warn")


def test_claims_that_are_used_are_not():
    used = {"lr": 1e-2, "weight_decay": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8}
    for claims in (used, {"schedule": [1e-2] * 20}, {"hyper": {"amsgrad": False}}):
        assert "weak-claim" not in codes(loop(STEP, **claims))


# --- what is handed over ----------------------------------------------------------------------


def handed(**parts):
    model = nn.Linear(2, 1)
    made = {
        "step": lambda batch: None,
        "loss": lambda batch: model(batch).mean(),
        "batches": [torch.ones(3, 2)],
        "model": model,
        "optimizer": T.SGD(model.parameters(), 0.1),
    }
    return Training(**made | parts)


def vector(batch):
    return torch.ones(3, requires_grad=True)


def raising(batch):
    raise ValueError("bad shape")


USELESS = [
    ({"batches": 3}, "batches.*3"),
    ({"batches": None}, "batches.*None"),
    ({"batches": []}, "batches is empty"),
    ({"loss": lambda batch: None}, "loss must give .* NoneType"),
    ({"loss": lambda batch: "low"}, "loss must give .* str"),
    ({"loss": vector}, r"loss must give .* shape \(3,\)"),
    ({"loss": lambda batch: {"loss": torch.ones(())}}, "loss must give .* dict"),
    ({"loss": raising}, "loss raised ValueError: bad shape"),
    ({"loss": lambda batch: ()}, "loss must give .* tuple"),
    ({"loss": []}, "loss must be callable"),
    ({"loss": lambda: 1}, "loss raised TypeError"),
    ({"model": 3}, "model must be .*Module.* 3"),
    ({"optimizer": 3}, r"optimizer must have a step\(\).* 3"),
    ({"optimizer": []}, "no optimizer|optimizer"),
    ({"loss": [vector, vector]}, "2 losses for 1 optimizer"),
]


@pytest.mark.parametrize(("parts", "told"), USELESS, ids=[told for _, told in USELESS])
def test_a_part_that_is_of_no_use_is_named(parts, told):
    with pytest.raises(UsageError, match=told):
        check_step(handed(**parts))


def test_batches_may_be_made_by_a_function():
    with pytest.raises(UsageError, match="batches"):
        check_step(handed(batches=lambda: [torch.ones(3, 2)]))


def test_a_loss_that_is_not_finite_is_told_as_such():
    for what in ("nan", "inf"):
        result = loop(STEP, act=f"value = value * float('{what}')")
        assert (result.verdict, result.findings[0].code) == ("fail", "step-loss-nonfinite")
        assert f"the loss is {what} at call 1" in result.headline


def test_a_loss_that_breaks_on_the_way_is_told_with_the_call():
    body = STEP + "; number == 3 and [p.data.mul_(float('nan')) for p in params]"
    result = loop(body)
    assert result.findings[0].code == "step-loss-nonfinite"
    assert "the loss is nan at call 4" in result.headline


# --- optimizers with habits of their own ------------------------------------------------------


class Slotted:
    """An optimizer whose attributes cannot be set."""

    __slots__ = ("param_groups",)

    def __init__(self, params):
        self.param_groups = [{"params": list(params), "lr": 0.1}]

    def step(self):
        for p in self.param_groups[0]["params"]:
            p.data.sub_(0.1 * p.grad)

    def zero_grad(self):
        for p in self.param_groups[0]["params"]:
            p.grad = None


class Inheriting(Slotted):
    """A class without a step of its own."""

    __slots__ = ()


class Rebinding:
    """An optimizer that keeps its step as an attribute."""

    def __init__(self, params):
        self.param_groups = [{"params": list(params), "lr": 0.1}]
        self.step = self.first

    def first(self):
        self.moved()
        self.step = self.moved

    def moved(self):
        for p in self.param_groups[0]["params"]:
            p.data.sub_(0.1 * p.grad)

    def zero_grad(self):
        for p in self.param_groups[0]["params"]:
            p.grad = None


class Counting(T.SGD):
    """A counter that hides the method of torch."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.step = self.counted

    def counted(self, closure=None):
        return T.SGD.step(self, closure)


KINDS = {
    "slots": Slotted,
    "inherited": Inheriting,
    "rebinding": Rebinding,
    "counting": lambda params: Counting(params, 0.1),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_optimizers_that_bind_their_step_themselves(kind):
    def training(factor=1.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        opt = kind(model.parameters())
        batches = [(torch.randn(n, 4), torch.randn(n, 1)) for n in (8, 8, 5)]

        def loss(batch):
            return F.mse_loss(model(batch[0]), batch[1])

        def step(batch):
            opt.zero_grad()
            (factor * loss(batch)).backward()
            opt.step()

        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=opt)

    for claims in ({}, {"optimizer": "sgd", "lr": 0.1}):
        result = check_step(training, **claims)
        assert result.verdict == "pass", result.headline
        assert check_step(lambda: training(7.0), **claims).verdict == "fail"
    ready = training()
    before, names = ready.optimizer.step, set(vars(type(ready.optimizer)))
    check_step(ready)
    assert ready.optimizer.step == before
    assert set(vars(type(ready.optimizer))) == names


@pytest.mark.parametrize(
    "optimizer",
    [lambda ps: T.SGD(ps, 0.1, momentum=0.9), lambda ps: T.SparseAdam(ps, 1e-2)],
    ids=["momentum", "SparseAdam"],
)
def test_sparse_gradients(optimizer):
    def training(factor=1.0):
        torch.manual_seed(0)
        model = nn.EmbeddingBag(12, 3, sparse=True, mode="sum")
        opt = optimizer(model.parameters())
        batches = [(torch.randint(12, (n, 4)), torch.randn(n, 3)) for n in (6, 6, 3)]

        def loss(batch):
            return F.mse_loss(model(batch[0]), batch[1])

        def step(batch):
            opt.zero_grad()
            (factor * loss(batch)).backward()
            opt.step()

        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=opt)

    result = check_step(training)
    assert result.verdict == "pass", result.headline
    assert check_step(lambda: training(7.0)).verdict == "fail"
