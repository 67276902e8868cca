"""infer_axes on the layers and models of the corpus, whose axes are known by layer class."""

import collections
import importlib

import pytest

from optax_gc import infer_axes

FRAMEWORKS = ("flax_linen", "flax_nnx", "haiku", "equinox", "keras", "plain")


def _cases(name, hard=False):
    module = importlib.import_module(f"corpus.{name}")
    return getattr(module, "HARD", []) if hard else module.CASES


def _settle(case):
    """Returns the plan, and its verdicts by path: right, undecided or wrong."""
    fn, params, args = case.build()
    plan = infer_axes(fn, params, *args)
    verdicts = {}
    for path, found in plan.items():
        shape = plan.shapes.get(path)
        if shape is None:
            continue
        truth = case.truth(path, shape)

        def inputs(axes, shape=shape):
            # An axis of size one has no say in a mean.
            return {axis for axis in axes.in_axes if shape[axis] > 1}

        if truth is None:
            verdict = "right" if found is None else "wrong"
        elif found is None:
            verdict = "undecided"
        else:
            verdict = "right" if inputs(found) == inputs(truth) else "wrong"
            if case.check_batch and verdict == "right" and found.batch_axes != truth.batch_axes:
                verdict = "right but for batch"
        verdicts[path] = (verdict, found, truth, plan.why[path])
    return verdicts


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


def test_hard_programs_are_settled_right_or_left_alone(framework):
    report = []
    for case in _cases(framework, hard=True):
        for path, (verdict, *details) in _settle(case).items():
            if verdict == "wrong":
                report.append((case.name, path, *details))
    assert not report, report
