"""What functions carry along: how far the walk goes, and which globals code names."""

import argparse
import decimal
import dis
import inspect
import typing
from types import CodeType, SimpleNamespace

import numpy as np
import pytest

from pytest_gradcheck.backends import reach


def _codes(code):
    yield code
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _codes(part)


def _by_dis(code):
    names = [each.argval for each in dis.get_instructions(code) if "GLOBAL" in each.opname]
    names += [each.argval for each in dis.get_instructions(code) if each.opname.endswith("_NAME")]
    inner = [_by_dis(part) for part in code.co_consts if isinstance(part, CodeType)]
    return set(names).difference(_imports(code)).union(*inner)


def _imports(code):
    """Names of modules: an instruction of their own, which is no global."""
    own = {each.argval for each in dis.get_instructions(code) if each.opname == "IMPORT_NAME"}
    kept = {each.argval for each in dis.get_instructions(code) if each.opname == "STORE_NAME"}
    return own - kept


MANY = "def f():\n" + "\n".join(f"    g{i}(h.a{i})" for i in range(700))


@pytest.mark.parametrize(
    "source",
    [
        *(pytest.param(inspect.getsource(m), id=m.__name__) for m in (argparse, decimal, typing)),
        pytest.param(MANY, id="more than 255 names"),
    ],
)
def test_the_globals_of_code_are_those_that_dis_tells(source):
    for code in _codes(compile(source, "source", "exec")):
        assert set(reach.names_of(code)) == _by_dis(code)


def test_an_object_is_opened_from_where_it_is_nearest():
    inner = [object()]
    for roots in ([inner, [[inner]]], [[[inner]], inner]):
        assert any(value is inner[0] for value in reach.reachable(roots, depth=2))


def test_what_is_near_is_found_beside_more_than_can_be_looked_at():
    many, near = [[object() for _ in range(reach.WIDTH)] for _ in range(reach.WIDTH)], object()
    for roots in ([many, [near]], [[near], many]):
        found = reach.reachable(roots)
        assert len(found) == reach.REACH
        assert any(value is near for value in found)


def test_classes_modules_and_plain_values_are_no_objects_that_carry():
    class Kind(type):
        pass

    assert reach.reachable([argparse, Kind, Kind("Other", (), {}), 3, "a", None, 1.5]) == []


def test_nobody_is_asked_what_it_is():
    class Proxy:
        @property
        def __class__(self):
            raise AssertionError("asked")

    proxy = Proxy()
    assert [value is proxy for value in reach.reachable([proxy], depth=0)] == [True]


def test_a_loader_that_has_begun_is_left_alone():
    data = pytest.importorskip("torch.utils.data")
    begun = iter(data.DataLoader([1, 2, 3]))
    assert not any(value is begun for value in reach.reachable([[begun]]))


def test_attributes_of_instances_and_functions():
    box = SimpleNamespace(calls=1)

    def function():
        return box

    function.calls = 2
    found = reach.attributes([box, function, [box], np.ones(3)])
    assert [held["calls"] for held in found] == [1, 2]
