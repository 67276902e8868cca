"""Training on several hosts, killed and resumed on another mesh: two processes on this machine play the hosts.

The conv net of train_digits.py, its params and the optimizer's state sharded over all processes (FSDP). `gc(plan)` is
chained as it is anywhere: under `jit` the compiler adds the one small sum that a mean across shards needs.

    python examples/multi_host.py --kill-at 5                # all processes are killed while they save epoch 5
    python examples/multi_host.py --fsdp 4                   # resumes on another mesh
    python examples/multi_host.py --processes 1 --epochs 30  # and once more, in one process

On real hosts, run `worker` on each, with its rank and the address of the first.
"""

import argparse
import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


def worker(args: argparse.Namespace, rank: int, address: str, say) -> None:
    # Imported here, since the parent only starts processes.
    import jax
    import numpy as np
    import optax
    import orbax.checkpoint as ocp
    from flax import nnx
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from train_digits import Net, build_step, load

    import optax_gc

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Without a bind address, the coordinator listens on every network of the machine.
    jax.distributed.initialize(address, args.processes, rank, coordinator_bind_address=address)
    # Devices come sorted by process: with fsdp first, the shards of a param lie in different processes.
    mesh = Mesh(np.array(jax.devices()).reshape(args.fsdp, -1), ("fsdp", "data"))

    (images, labels), (test_images, test_labels) = load(None)
    model = nnx.eval_shape(lambda: Net(images.shape[1], nnx.Rngs(0)))
    graphdef = nnx.graphdef(model)
    plan = optax_gc.infer_axes(Net.__call__, model, images[:1])
    optimizer = optax.chain(optax_gc.gc(plan), optax.sgd(0.05, momentum=0.9))

    def init():
        params = nnx.state(Net(images.shape[1], nnx.Rngs(0)))
        return params, optimizer.init(params)

    def shard(leaf):
        axis = next((axis for axis, size in enumerate(leaf.shape) if size % args.fsdp == 0), None)
        spec = P() if axis is None else P(*[None] * axis, "fsdp")
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    target = jax.tree.map(shard, jax.eval_shape(init))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    # Orbax lets replicas save a slice each, for which Orbax 0.12 needs a newer jax than 0.6.
    whole = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    ocp.type_handlers.register_type_handler(jax.Array, whole, override=True)
    folder = args.out.absolute() / "checkpoints"
    manager = ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=2))
    done = manager.latest_step() or 0
    if done:
        params, opt_state = manager.restore(done, args=ocp.args.StandardRestore(target))
    else:
        params, opt_state = jax.jit(init, out_shardings=shardings)()

    leaves = jax.tree.leaves(params)
    held = sum(part.data.size for leaf in leaves for part in leaf.addressable_shards if part.replica_id == 0)
    share = held / sum(leaf.size for leaf in leaves)
    say(f"mesh {dict(mesh.shape)}, {args.processes} processes, the first of which holds {share:.0%} of the params")
    say(f"resumes after epoch {done}" if done else "starts")

    step = jax.jit(build_step(graphdef, optimizer), donate_argnums=(0, 1), out_shardings=(*shardings, None, None))
    by_image = NamedSharding(mesh, P(("fsdp", "data")))
    for epoch in range(done + 1, args.epochs + 1):
        # The order is a function of the epoch, so that a run that resumes goes on as if it had never stopped.
        order = np.random.default_rng(epoch).permutation(len(images))
        batches = order[: len(order) // args.batch_size * args.batch_size]
        batches = batches.reshape(-1, args.processes, args.batch_size // args.processes)
        # Each process reads its own images only.
        for batch in batches[:, rank]:
            inputs = (jax.make_array_from_process_local_data(by_image, part[batch]) for part in (images, labels))
            params, opt_state, loss, _ = step(params, opt_state, *inputs)
        manager.save(epoch, args=ocp.args.StandardSave((params, opt_state)))
        say(f"epoch {epoch}: loss {loss:.4f}")
        if epoch == args.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    manager.close()

    @jax.jit
    def accuracy(params):
        return (nnx.merge(graphdef, params)(test_images).argmax(-1) == test_labels).mean()

    say(f"test accuracy {accuracy(params):.3f} after {max(done, args.epochs)} epochs")
    jax.distributed.shutdown()


def launch(args: argparse.Namespace) -> str | None:
    """Starts the workers and waits for them; returns what went wrong, if anything did."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", address]
    processes, deadline = [], time.monotonic() + args.timeout
    try:
        for rank in range(args.processes):
            with open(args.out / f"process_{rank}.log", "w") as log:
                # In a session of its own: Ctrl-C is for the parent, which stops the workers.
                process = subprocess.Popen(
                    [*command, str(rank)], stdin=subprocess.PIPE, stderr=log, start_new_session=True
                )
            processes.append(process)
        print("started processes", *(process.pid for process in processes), flush=True)
        while True:
            codes = [process.poll() for process in processes]
            failed = next((rank for rank, code in enumerate(codes) if code), None)
            if failed is not None:
                code = codes[failed]
                how = signal.Signals(-code).name if code < 0 else f"code {code}, see {args.out}/process_{failed}.log"
                return f"process {failed} ended with {how}; all are stopped"
            if None not in codes:
                return None
            if time.monotonic() > deadline:
                return f"not done after {args.timeout} s; all processes are stopped"
            time.sleep(0.05)
    except KeyboardInterrupt:
        return "interrupted; all processes are stopped"
    finally:
        for process in processes:
            process.kill()
            process.wait()


def parse_args() -> argparse.Namespace:
    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    parser = argparse.ArgumentParser(description=__doc__, usage="%(prog)s [options]", formatter_class=Formatter)
    parser.add_argument("--processes", type=int, default=2, help="how many processes")
    parser.add_argument("--devices", type=int, default=2, help="simulated CPU devices in each process")
    parser.add_argument("--fsdp", type=int, default=2, help="over how many devices to shard; the rest hold copies")
    parser.add_argument("--epochs", type=int, default=20, help="train until so many epochs are done")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a batch, over all devices")
    parser.add_argument("--kill-at", type=int, metavar="EPOCH", help="epoch after which SIGKILL ends all processes")
    parser.add_argument("--out", type=Path, default=Path("out/multi_host"), help="folder for checkpoints and logs")
    parser.add_argument("--timeout", type=int, default=600, help="seconds after which all processes are stopped")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name, value in vars(args).items():
        if isinstance(value, int) and value < 1:
            parser.error(f"argument --{name.replace('_', '-')}: must be positive, got {value}")
    total = args.processes * args.devices
    if total % args.fsdp:
        parser.error(f"argument --fsdp: {args.fsdp} does not divide the {total} devices")
    if args.batch_size % total or args.batch_size > 1347:
        parser.error(f"argument --batch-size: must be a multiple of {total}, the devices, and at most 1347, the images")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out).close()
    except OSError as error:
        parser.error(f"argument --out: cannot write to {args.out} ({error.strerror})")
    return args


def main() -> int:
    args = parse_args()
    if args.worker:
        # The parent holds the other end of stdin: once it is gone, however it died, so is this process.
        threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
        address, rank = args.worker
        # Gloo greets its peers on stdout, so that goes to the log, and what the first process says to the real one.
        out = os.fdopen(os.dup(1) if rank == "0" else os.open(os.devnull, os.O_WRONLY), "w")
        os.dup2(2, 1)
        worker(args, int(rank), address, functools.partial(print, file=out, flush=True))
        return 0
    trouble = launch(args)
    if trouble:
        print(f"{trouble}. The same command resumes from the last checkpoint in {args.out}.", file=sys.stderr)
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main())
