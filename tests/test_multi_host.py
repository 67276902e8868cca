"""`gc` over two processes is `gc` in one, and examples/multi_host.py survives a kill, on another mesh.

Every claim about params is against one reference: the same steps on one device, in this process, without sharding,
checkpoint or kill.
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from optax_gc import WeightAxes, gc

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train_digits import Net, build_step, load

SCRIPT = [sys.executable, str(Path(__file__).parents[1] / "examples" / "multi_host.py")]
BATCH_SIZE, EPOCHS, KILLED_AT = 128, 3, 2
SECONDS = 150
AXES = {"conv1": WeightAxes((0, 1, 2), (3,)), "conv2": WeightAxes((0, 1, 2), (3,)), "dense": WeightAxes((0,), (1,))}


@contextlib.contextmanager
def started(*arguments, cwd):
    # The number of simulated devices is the script's own to choose; compiling as little as elsewhere in the tests.
    env = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*SCRIPT, *arguments], cwd=cwd, env=env, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process):
    """Waits until nobody holds the pipes: neither the parent nor a worker, reaped or not, is left."""
    output, errors = process.communicate(timeout=SECONDS)
    return output, errors, process.returncode


def pids(process):
    line = process.stdout.readline()
    assert line.startswith("started processes"), line
    return [int(word) for word in line.split()[2:]]


@functools.cache
def training(transform):
    graphdef, params = nnx.split(Net(8, nnx.Rngs(0)))
    optimizer = optax.chain(transform(), optax.sgd(0.05, momentum=0.9))
    return (params, optimizer.init(params)), build_step(graphdef, optimizer)


@functools.cache
def alone(epochs, transform=gc, shuffle=None):
    """Params and momentum after training on one device; `shuffle` reorders the images within each batch."""
    start, step = training(transform)
    if epochs == 0:
        return start
    state, ((images, labels), _) = alone(epochs - 1, transform, shuffle), load(None)
    order = np.random.default_rng(epochs).permutation(len(images))
    for batch in order[: len(order) // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE):
        batch = batch if shuffle is None else np.random.default_rng(shuffle).permutation(batch)
        state = step(*state, jnp.asarray(images[batch]), jnp.asarray(labels[batch]))[:2]
    return state


def saved(folder, epoch):
    """Params and momentum of a checkpoint, read onto one device."""
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), alone(0))
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / "out" / "multi_host" / "checkpoints" / str(epoch) / "default", like)


def distance(one, other):
    """The largest difference in any entry, for each leaf."""
    return np.array([np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True)])


def assert_trained_alike(state, epochs):
    """Checks that only the order of sums differs.

    How far that order may carry is measured, on one device: the images of each batch are reordered, which changes no
    sum but for its rounding. Two processes order the same sums in yet another way, and are allowed four times the
    farthest of three such runs. That is some 1e-7, one ulp of the largest weights.
    """
    reference = alone(epochs)
    allowed = 4 * np.max([distance(alone(epochs, shuffle=seed), reference) for seed in range(3)], axis=0)
    assert allowed.max() < 1e-5, "the reference itself hangs on rounding, and proves nothing"
    apart = distance(state, reference)
    assert (apart <= allowed).all(), f"{apart} is more than {allowed}"
    # Nor would any other operator do.
    assert (distance(alone(epochs, transform=optax.identity), reference).max() > 100 * allowed).all()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run of two processes, of which the second is killed in the middle, while a checkpoint is being written."""
    folder = tmp_path_factory.mktemp("killed")
    arguments = ("--epochs", str(EPOCHS), "--batch-size", str(BATCH_SIZE), "--timeout", str(SECONDS))
    with started(*arguments, cwd=folder) as process:
        workers = pids(process)
        output = ""
        while f"epoch {KILLED_AT}:" not in output:
            output += (line := process.stdout.readline())
            assert line, process.communicate()
        os.kill(workers[1], signal.SIGKILL)
        rest, errors, code = finish(process)
    return folder, output + rest, errors, code


@pytest.fixture(scope="module")
def resumed(killed):
    """The same run, taken up again on a mesh of another shape."""
    arguments = ("--epochs", str(EPOCHS), "--batch-size", str(BATCH_SIZE), "--timeout", str(SECONDS), "--fsdp", "4")
    with started(*arguments, cwd=killed[0]) as process:
        return killed[0], *finish(process)


def latest(folder):
    names = [path.name for path in (folder / "out" / "multi_host" / "checkpoints").iterdir()]
    return max(int(name) for name in names if name.isdigit())


def test_a_killed_process_ends_the_others_and_is_named(killed):
    _, output, errors, code = killed
    assert f"epoch {EPOCHS}:" not in output
    assert errors.startswith("process 1 ended with SIGKILL; all are stopped."), errors
    assert len(errors.splitlines()) == 1
    assert code == 1


def test_each_process_holds_half_of_the_params(killed):
    assert "mesh {'fsdp': 2, 'data': 2}, 2 processes, the first of which holds 50% of the params" in killed[1]


def test_two_processes_equal_one(killed):
    folder = killed[0]
    assert latest(folder) in (KILLED_AT - 1, KILLED_AT)
    assert_trained_alike(saved(folder, latest(folder)), latest(folder))


def test_resumed_on_another_mesh_nothing_is_lost(killed, resumed):
    folder, output, errors, code = resumed
    assert code == 0, errors + (folder / "out" / "multi_host" / "process_0.log").read_text()
    assert "mesh {'fsdp': 4, 'data': 1}, 2 processes" in output
    assert "\nstarts\n" in killed[1]
    assert "\nresumes after epoch " in output
    assert_trained_alike(saved(folder, EPOCHS), EPOCHS)


def test_over_kill_and_meshes_each_unit_keeps_the_sum_of_its_weights(resumed):
    start, end, without = (
        state[0] for state in (alone(0), saved(resumed[0], EPOCHS), alone(EPOCHS, transform=optax.identity))
    )
    for name, axes in AXES.items():
        before, after, other = (np.asarray(params[name]["kernel"][...], np.float64) for params in (start, end, without))
        # Each of the ten steps of an epoch rounds each weight by half an ulp at the most.
        bound = 10 * EPOCHS * np.abs(after).sum(axes.in_axes) * np.finfo(np.float32).eps
        assert (np.abs((after - before).sum(axes.in_axes)) <= bound).all(), name
        assert (np.abs((other - before).sum(axes.in_axes)) > bound).any(), name


def test_a_killed_parent_leaves_no_process_behind(tmp_path):
    with started("--timeout", str(SECONDS), cwd=tmp_path) as process:
        assert len(pids(process)) == 2
        process.kill()
        finish(process)


def test_it_is_bounded_in_time(tmp_path):
    with started("--timeout", "1", cwd=tmp_path) as process:
        _, errors, code = finish(process)
    assert errors.startswith("not done after 1 s; all processes are stopped."), errors
    assert code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "0"], "argument --processes: must be positive, got 0"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--fsdp", "3"], "argument --fsdp: 3 does not divide the 4 devices"),
        (["--batch-size", "66"], "argument --batch-size: must be a multiple of 4, the devices"),
        (["--out", "taken"], "argument --out: cannot write to taken"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_value_gets_one_clear_line(arguments, message, tmp_path):
    (tmp_path / "taken").touch()
    with started(*arguments, cwd=tmp_path) as process:
        _, errors, code = finish(process)
    usage, error = errors.splitlines()
    assert usage.startswith("usage: multi_host.py")
    assert message in error
    assert code == 2
