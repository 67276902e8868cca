"""infer_axes on random programs: never a wrong axis, almost never undecided, and the axes mean what they say."""

import collections
import json
import pathlib

import jax
import numpy as np
import pytest
from generated import programs

import optax_gc

FIRST, CHUNK = 1000, 50
UNDECIDED = json.loads((pathlib.Path(__file__).parent / "undecided.json").read_text())["programs"]


@pytest.mark.parametrize("start", range(FIRST, FIRST + 150, CHUNK))
def test_no_axis_of_a_random_program_is_wrong_and_what_is_undecided_is_known(start):
    found = {
        (seed, name): verdict
        for seed in range(start, start + CHUNK)
        for name, verdict in programs.verdicts(programs.program(seed)).items()
    }
    assert not {key: why for key, (word, why) in found.items() if word == "wrong"}
    assert not {key for key, (_, why) in found.items() if not why.split(": ", 1)[1]}
    undecided = {key: why for key, (word, why) in found.items() if word == "undecided"}
    assert undecided.keys() <= set(map(tuple, UNDECIDED)), undecided
    count = collections.Counter(word for word, _ in found.values())
    assert count["right"] > CHUNK
    assert count["unsure"] <= 0.2 * len(found)


@pytest.mark.parametrize("seed", range(6))
def test_the_program_computes_what_its_roles_say(seed):
    assert programs.check_numbers(programs.program(seed)) == "agree"


def _exact(seed):
    made = programs.program(seed)
    return made.exact if made.differentiable else frozenset()


@pytest.mark.parametrize("seed", [seed for seed in range(60) if len(_exact(seed)) > 1][:5])
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
