"""infer_axes on the layers and models of the corpus, whose axes are known by layer class."""

import collections
import importlib
import json
import pathlib
import re

import pytest

from optax_gc import infer_axes

FRAMEWORKS = ("flax_linen", "flax_nnx", "haiku", "equinox", "keras")
FRAMEWORKS += ("plain", "spellings", "indices", "factors", "writes", "reads", "decoders", "published")  # in plain JAX

# What may be left alone though its axes are known, by the module that holds its case: (name of the case, path).
UNDECIDED = json.loads((pathlib.Path(__file__).parent / "undecided.json").read_text())


def _cases(framework, name="CASES"):
    return getattr(importlib.import_module(f"corpus.{framework}"), name, [])


def _long(axes, shape):
    # An axis of size one has no say in a mean, nor is it a stack.
    return {axis for axis in axes if shape[axis] > 1}


def _verdict(found, truth, shape, check_batch):
    if truth is None:
        return "right" if found is None else "wrong"
    if found is None:
        return "undecided"
    if _long(found.in_axes, shape) != _long(truth.in_axes, shape):
        return "wrong"
    same_batch = _long(found.batch_axes, shape) == _long(truth.batch_axes, shape)
    return "right" if same_batch or not check_batch else "right but for batch"


def _settle(case):
    """Returns by path: the verdict, the axes found, the truth, and the reason given."""
    fn, params, args = case.build()
    plan = infer_axes(fn, params, *args)
    verdicts = {}
    for path, shape in plan.shapes.items():
        truth = case.truth(path, shape)
        answers = truth if isinstance(truth, tuple) else (truth,)
        verdict = min((_verdict(plan[path], answer, shape, case.check_batch) for answer in answers), key=_BEST.index)
        verdicts[path] = (verdict, plan[path], truth, plan.why[path])
    return verdicts


_BEST = ("right", "undecided", "right but for batch", "wrong")


@pytest.fixture(scope="module", params=FRAMEWORKS)
def framework(request):
    return request.param


def _report(framework, *names):
    """Returns what is wrong, with its details; what is undecided; and how many weights there are of each verdict."""
    wrong, undecided, count = [], set(), collections.Counter()
    for name in names:
        for case in _cases(framework, name):
            for path, (verdict, *details) in _settle(case).items():
                count[verdict] += 1
                if verdict == "undecided":
                    undecided.add((case.name, re.sub(r"_\d+", "", path)))  # Keras counts its layers
                elif verdict == "wrong" or (verdict != "right" and name == "CASES"):
                    wrong.append((case.name, path, verdict, *details))
    return wrong, undecided, count


def test_no_axis_is_wrong_and_what_is_undecided_is_known(framework):
    wrong, undecided, count = _report(framework, "CASES")
    assert count["right"] > 30, count
    assert not wrong, wrong
    assert undecided <= set(map(tuple, UNDECIDED["corpus"][framework]))


def test_hard_programs_are_settled_right_or_left_alone(framework):
    wrong, undecided, _ = _report(framework, "HARD", "AMBIGUOUS")
    assert not wrong, wrong
    assert undecided <= set(map(tuple, UNDECIDED["hard"][framework]))


def test_every_case_has_a_name_of_its_own(framework):
    names = [case.name for kind in ("CASES", "HARD", "AMBIGUOUS") for case in _cases(framework, kind)]
    assert len(names) == len(set(names)), [name for name, n in collections.Counter(names).items() if n > 1]
