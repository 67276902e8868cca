"""infer_axes on the layers and models of the corpus, whose axes are known by layer class."""

import collections
import importlib

import pytest

from optax_gc import infer_axes

FRAMEWORKS = ("flax_linen", "flax_nnx", "haiku", "equinox", "keras", "plain")


def _cases(framework, name="CASES"):
    return getattr(importlib.import_module(f"corpus.{framework}"), name, [])


def _inputs(axes, shape):
    # An axis of size one has no say in a mean.
    return {axis for axis in axes.in_axes if shape[axis] > 1}


def _verdict(found, truth, shape, check_batch):
    if truth is None:
        return "right" if found is None else "wrong"
    if found is None:
        return "undecided"
    if _inputs(found, shape) != _inputs(truth, shape):
        return "wrong"
    return "right but for batch" if check_batch and found.batch_axes != truth.batch_axes else "right"


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


def test_no_axis_is_wrong_and_almost_none_undecided(framework):
    count = collections.Counter()
    report = []
    for case in _cases(framework):
        for path, (verdict, *details) in _settle(case).items():
            count[verdict] += 1
            if verdict != "right":
                report.append((case.name, path, verdict, *details))
    assert count["right"] > 30, count
    assert not [line for line in report if line[2] != "undecided"], report
    assert count["undecided"] <= 0.01 * sum(count.values()), report


@pytest.mark.parametrize("name", ["HARD", "AMBIGUOUS"])
def test_hard_programs_are_settled_right_or_left_alone(framework, name):
    report = []
    for case in _cases(framework, name):
        for path, (verdict, *details) in _settle(case).items():
            if verdict == "wrong":
                report.append((case.name, path, *details))
    assert not report, report
