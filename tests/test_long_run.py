"""Over many steps `gc` keeps `eᵀw` to within rounding, and neither compiles again nor keeps memory."""

import functools
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import long_run

COMPILATIONS = long_run.Compilations()
STEPS = 200


@functools.cache
def run(dtypes, optimizer, arm):
    return long_run.run(dtypes, optimizer, arm, STEPS, COMPILATIONS)


runs = pytest.mark.parametrize(
    ("dtypes", "optimizer", "arm"),
    [
        ("float32", "sgd", "before"),
        ("float32", "adam", "after"),
        ("bfloat16", "sgd", "before"),
        ("bfloat16", "adam", "after"),
    ],
)


@runs
def test_the_drift_is_within_the_bound_of_rounding(dtypes, optimizer, arm):
    done = run(dtypes, optimizer, arm)
    assert done.finite
    assert done.moved > 0.1
    np.testing.assert_array_less(done.drift, done.bound)


def test_without_gc_the_sums_go_far_beyond_it():
    kept, free = (run("float32", "sgd", arm) for arm in ("before", "none"))
    assert free.drift.max() > 1000 * kept.bound.max()


@runs
def test_after_the_first_steps_nothing_is_compiled_and_no_array_is_kept(dtypes, optimizer, arm):
    done = run(dtypes, optimizer, arm)
    assert done.compilations == 0
    (arrays, size), (arrays_at_end, size_at_end) = done.live
    # Fewer would be what an earlier test has left behind.
    assert arrays_at_end <= arrays
    assert size_at_end <= size


def test_compilations_are_seen():
    before = COMPILATIONS.count
    jax.jit(lambda x: x + 1)(np.float32(1))
    assert COMPILATIONS.count > before
