"""infer_axes on random programs: never a wrong axis, almost never undecided, and the axes mean what they say."""

import collections
import json
import pathlib

import jax
import numpy as np
import programs
import pytest

import optax_gc

CHUNK = 50


@pytest.mark.parametrize("start", range(0, 400, CHUNK))
def test_no_axis_of_a_random_program_is_wrong(start):
    count = collections.Counter()
    report = []
    for seed in range(start, start + CHUNK):
        for name, (verdict, why) in programs.verdicts(programs.program(seed)).items():
            count[verdict] += 1
            if verdict == "wrong":
                report.append((seed, name, why))
            assert why.split(": ", 1)[1], (seed, name)
    assert not report
    assert count["right"] > CHUNK


def test_what_is_undecided_of_random_programs_is_known():
    verdicts = [
        (verdict, seed, name, why)
        for seed in range(1000, 1200)
        for name, (verdict, why) in programs.verdicts(programs.program(seed)).items()
    ]
    known = json.loads((pathlib.Path(__file__).parent / "undecided.json").read_text())["programs"]
    undecided = {(seed, name): why for verdict, seed, name, why in verdicts if verdict == "undecided"}
    assert undecided.keys() <= set(map(tuple, known)), undecided
    unsure = sum(line[0] == "unsure" for line in verdicts)
    assert unsure <= 0.1 * len(verdicts)


@pytest.mark.parametrize("seed", range(10))
def test_the_program_computes_what_its_roles_say(seed):
    assert programs.check_numbers(programs.program(seed)) == "agree"


def _exact(seed):
    made = programs.program(seed)
    return made.exact if made.differentiable else frozenset()


@pytest.mark.parametrize("seed", [seed for seed in range(60) if len(_exact(seed)) > 1][:10])
def test_gc_with_these_axes_is_the_gradient_of_inputs_less_their_mean(seed):
    made = programs.program(seed)
    plan = optax_gc.infer_axes(made.fn, made.params, made.args)

    def grad(centered):
        return jax.jit(jax.grad(lambda params: (made.forward(params, made.args, centered) ** 2).sum()))(made.params)

    gc = optax_gc.gc(plan)
    found, _ = gc.update(grad(False), gc.init(made.params))
    centered = grad(True)
    for name in made.exact:
        if plan[name] is not None:
            scale = float(np.abs(found[name]).max())
            np.testing.assert_allclose(found[name], centered[name], atol=1e-4 * scale + 1e-7, err_msg=name)
