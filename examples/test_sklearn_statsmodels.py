"""Gradients that others wrote by hand, checked exactly as they are shipped.

scikit-learn and statsmodels fit their models with analytic gradients and Hessians. Nothing is
wrapped or rewritten here: their bound methods go straight into ``gradcheck``.
"""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import optimize, sparse
from sklearn._loss import (
    HalfBinomialLoss,
    HalfGammaLoss,
    HalfMultinomialLoss,
    HalfPoissonLoss,
    HalfSquaredError,
    HalfTweedieLoss,
    HuberLoss,
)
from sklearn.linear_model._linear_loss import LinearModelLoss
from statsmodels.discrete.discrete_model import GeneralizedPoisson, NegativeBinomialP

SAMPLES, FEATURES, CLASSES = 60, 5, 3


@pytest.fixture(name="X")
def data():
    return np.random.default_rng(0).normal(size=(SAMPLES, FEATURES))


def drawn(*shape):
    """Coefficients away from the optimum, where the gradient has something to say."""
    return np.random.default_rng(1).normal(0, 0.3, shape)


def targets(kind):
    rng = np.random.default_rng(2)
    return {
        "real": rng.normal(size=SAMPLES),
        "positive": rng.gamma(2.0, size=SAMPLES),
        "count": rng.poisson(2.0, SAMPLES).astype(float),
        "binary": rng.integers(0, 2, SAMPLES).astype(float),
        "class": rng.integers(0, CLASSES, SAMPLES).astype(float),
    }[kind]


# --- scikit-learn: linear models --------------------------------------------------------------

LOSSES = [
    (HalfSquaredError(), "real"),
    (HalfPoissonLoss(), "count"),
    (HalfGammaLoss(), "positive"),
    (HalfTweedieLoss(power=1.5), "positive"),
    (HalfBinomialLoss(), "binary"),
    (HuberLoss(delta=0.5), "real"),  # smooth once, kinked in its second derivative
]


def named(value):
    return type(value).__name__ if hasattr(value, "link") else str(value)


@pytest.mark.parametrize(("base", "kind"), LOSSES, ids=named)
def test_linear_model(gradcheck, X, base, kind):
    model = LinearModelLoss(base, fit_intercept=True)
    weight = np.random.default_rng(3).uniform(0.5, 2, SAMPLES)
    coef, y = drawn(FEATURES + 1), targets(kind)
    # loss_gradient returns (loss, gradient with respect to coef); the data stay as they are.
    gradcheck(
        model.loss_gradient,
        coef,
        X,
        y,
        sample_weight=weight,
        l2_reg_strength=0.1,
        value_and_grad=True,
        wrt="coef",
    )


def test_multinomial_model(gradcheck, X):
    model = LinearModelLoss(HalfMultinomialLoss(n_classes=CLASSES), fit_intercept=True)
    coef = np.asfortranarray(drawn(CLASSES, FEATURES + 1))
    gradcheck(model.loss, coef, X, targets("class"), grad=model.gradient, wrt="coef")


def test_linear_model_on_sparse_data(gradcheck, X):
    model = LinearModelLoss(HalfBinomialLoss(), fit_intercept=False)
    data = sparse.csr_array(np.where(X > 0, X, 0))
    coef, y = drawn(FEATURES), targets("binary")
    gradcheck(model.loss, coef, data, y, grad=model.gradient, wrt="coef")


def test_hessian_product(gradcheck, X):
    """The Hessian is the Jacobian of the gradient, and its product with a vector is a vjp."""
    model = LinearModelLoss(HalfBinomialLoss(), fit_intercept=True)

    def hessian_product(cotangent, coef, X, y):
        _, product = model.gradient_hessian_product(coef, X, y)
        return product(cotangent)

    coef, y = drawn(FEATURES + 1), targets("binary")
    gradcheck(model.gradient, coef, X, y, vjp=hessian_product, wrt="coef")


# --- statsmodels: log-likelihood, score, Hessian ----------------------------------------------

MODELS = [
    (sm.Logit, "binary", 0),
    (sm.Probit, "binary", 0),
    (sm.Poisson, "count", 0),
    (NegativeBinomialP, "count", 1),
    (GeneralizedPoisson, "count", 1),
]
models = pytest.mark.parametrize(
    ("model", "kind", "extra"), MODELS, ids=[cls.__name__ for cls, *_ in MODELS]
)


def params(extra):
    # Some count models have one parameter more, a dispersion that must be positive.
    return np.concatenate([drawn(FEATURES), np.full(extra, 0.7)])


@models
def test_score(gradcheck, X, model, kind, extra):
    built = model(targets(kind), X)
    gradcheck(built.loglike, params(extra), grad=built.score)


@models
def test_hessian(gradcheck, X, model, kind, extra):
    built = model(targets(kind), X)
    gradcheck(built.score, params(extra), jac=built.hessian)


@models
def test_score_of_each_observation(gradcheck, X, model, kind, extra):
    """One log-likelihood for each row: the derivative is a matrix, rows by parameters."""
    built = model(targets(kind), X)
    gradcheck(built.loglikeobs, params(extra), jac=built.score_obs)


def test_hessian_of_a_fitted_model(gradcheck, X):
    """Until it is fitted, this model's score and Hessian mean different parameters.

    The last one is the logarithm of the dispersion for the score, the dispersion itself for the
    Hessian; the check finds that out (statsmodels issue 1967). After the fit they agree.
    """
    built = sm.NegativeBinomial(targets("count"), X)
    fitted = built.fit(disp=False)
    gradcheck(built.score, fitted.params, jac=built.hessian)


# --- SciPy's test problems --------------------------------------------------------------------


def test_rosenbrock(gradcheck):
    x = np.array([1.3, 0.7, 0.8, 1.9, 1.2])
    gradcheck(optimize.rosen, x, grad=optimize.rosen_der)
    gradcheck(optimize.rosen_der, x, jac=optimize.rosen_hess)
