"""infer_axes on whole random networks: never a wrong axis, and what is undecided is known one by one."""

import json
import pathlib

import jax
import numpy as np
import pytest
from generated import networks

from optax_gc import WeightAxes

CHUNK = 30
SEEDS = 60
# Seeds of which each is wrong, or an error, where a rarely used step of the engine is left out.
RARE = (86335, 89716, 91955, 96255, 97825, 400001234, 500000938, 1000007892)
# What may be undecided of these seeds, and where batch and outputs may be named the other way round: (seed, path).
KNOWN = json.loads((pathlib.Path(__file__).parent / "undecided.json").read_text())


# A network may look up by floats that hold integers, which newer versions of JAX advise against.
@pytest.mark.filterwarnings("ignore:jax.nn.one_hot input should be integer:DeprecationWarning")
@pytest.mark.parametrize("start", range(0, SEEDS, CHUNK))
def test_no_axis_of_a_random_network_is_wrong(start):
    found = [
        (word, seed, path, why)
        for seed in range(start, start + CHUNK)
        for path, (word, why) in networks.verdicts(networks.draw(seed)).items()
    ]
    assert not [line for line in found if line[0] == "wrong"]
    for kind, known in ("undecided", KNOWN["networks"]), ("batch", KNOWN["networks: batch or out"]):
        these = {(seed, path): why for word, seed, path, why in found if word == kind}
        assert these.keys() <= set(map(tuple, known)), these


@pytest.mark.parametrize("seed", RARE)
def test_no_axis_of_a_rare_network_is_wrong(seed):
    verdicts = networks.verdicts(networks.draw(seed))
    assert not {path: why for path, (word, why) in verdicts.items() if word == "wrong"}


@pytest.mark.parametrize("seed", range(4))
def test_a_network_computes_finite_numbers(seed):
    for result in jax.tree.leaves(networks.run(networks.draw(seed))):
        assert np.isfinite(result).all()


@pytest.mark.parametrize(
    ("roles", "axes", "word"),
    [
        (("in", "out"), WeightAxes((0,), (1,)), "right"),
        (("in", "out"), WeightAxes((1,), (0,)), "wrong"),
        (("in", "out"), WeightAxes((0, 1), ()), "wrong"),
        (("in", "out"), None, "undecided"),
        (None, WeightAxes((0,), (1,)), "wrong"),
        (None, None, "right"),
        (("out", "in"), WeightAxes((1,), (), (0,)), "batch"),
        (("batch", "in"), WeightAxes((1,), (0,)), "batch"),
        (("copy", "in"), WeightAxes((1,), (0,)), "right"),
    ],
)
def test_the_verdict_tells_right_from_wrong(roles, axes, word):
    network = networks.draw(0)
    params, truth = {"w": jax.ShapeDtypeStruct((2, 3), np.float32)}, {"w": roles}
    made = networks.Network(network.fn, params, network.args, truth, frozenset(), {}, [])
    assert networks.judge(made, "w", axes) == word


def test_what_is_unsure_may_be_left_alone_but_not_be_wrong():
    network = networks.draw(0)
    params, truth = {"w": jax.ShapeDtypeStruct((2, 3), np.float32)}, {"w": ("in", "out")}
    made = networks.Network(network.fn, params, network.args, truth, frozenset(["w"]), {}, [])
    assert networks.judge(made, "w", None) == "right"
    assert networks.judge(made, "w", WeightAxes((1,), (0,))) == "wrong"
