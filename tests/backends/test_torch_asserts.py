import pytest

torch = pytest.importorskip("torch")

from pytest_gradcheck.backends.torch_asserts import RANGES, Asserted  # noqa: E402

ONE = torch.tensor([0.5])
CALLS = {
    "binary_cross_entropy": lambda x: torch.nn.functional.binary_cross_entropy(x, ONE),
    "bernoulli": torch.bernoulli,
    "bernoulli_": lambda p: torch.empty(1).bernoulli_(p),
    "binomial": lambda p: torch.binomial(ONE * 4, p),
    "multinomial": lambda x: torch.multinomial(x, 1),
    "poisson": torch.poisson,
}


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("bad", [-0.1, float("nan")])
def test_what_a_kernel_asserts_is_refused_before(name, bad):
    with Asserted():
        CALLS[name](ONE)
        with pytest.raises(ValueError, match=f"^{name} takes numbers from 0 to"):
            CALLS[name](torch.tensor([bad]))


@pytest.mark.parametrize("name", [name for name, kind in RANGES.items() if kind[2] == 1])
def test_probabilities_end_at_one(name):
    with Asserted(), pytest.raises(ValueError, match="from 0 to 1 as"):
        CALLS[name](torch.tensor([1.1]))


def test_modules_in_place_and_keywords_are_seen():
    with Asserted(), pytest.raises(ValueError, match="binary_cross_entropy"):
        torch.nn.BCELoss()(ONE * 3, ONE)
    with Asserted(), pytest.raises(ValueError, match="bernoulli"):
        torch.bernoulli(input=ONE * 3)
    with Asserted(), pytest.raises(ValueError, match="bernoulli"):
        (ONE * 3).bernoulli()


def test_inside_vmap_and_compiled_functions_nothing_is_read():
    with Asserted():
        found = torch.vmap(lambda x: torch.nn.functional.binary_cross_entropy(x, ONE[0]))(ONE)
        assert found.shape == (1,)
        compiled = torch.compile(lambda x: torch.sin(x) * 2, backend="eager")
        assert torch.equal(compiled(ONE), torch.sin(ONE) * 2)
