"""Training on several hosts, killed and resumed on another mesh: two processes on this machine play the hosts.

The conv net of train_digits.py, its params and its optimizer's state sharded over all processes (FSDP). `gc(plan)` is
chained like anywhere else: under `jit` the compiler adds the one small sum that a mean across shards needs.

    python examples/multi_host.py --kill-at 5                   # both processes are killed while they save epoch 5
    python examples/multi_host.py --fsdp 4                      # the rest of the epochs, on another mesh
    python examples/multi_host.py --epochs 30 --processes 1     # and on, in one process

On real hosts, start `worker` on each of them, with the address of the first.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


def worker(args: argparse.Namespace, rank: int, address: str) -> None:
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
    # Without a bind address the coordinator listens on every network that the machine is on.
    jax.distributed.initialize(address, args.processes, rank, coordinator_bind_address=address)

    # Devices come sorted by process: with fsdp first, the shards of a param lie in different processes.
    mesh = Mesh(np.array(jax.devices()).reshape(args.fsdp, -1), ("fsdp", "data"))
    (images, labels), test = load(None)
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Net(images.shape[1], nnx.Rngs(0))))
    plan = optax_gc.infer_axes(lambda params, images: nnx.merge(graphdef, params)(images), abstract, images[:1])
    optimizer = optax.chain(optax_gc.gc(plan), optax.sgd(0.05, momentum=0.9))

    def init():
        params = nnx.state(Net(images.shape[1], nnx.Rngs(0)))
        return params, optimizer.init(params)

    def shard(leaf):
        axis = next((axis for axis, size in enumerate(leaf.shape) if size % args.fsdp == 0), None)
        spec = P() if axis is None else P(*[None] * axis, "fsdp")
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    like = jax.tree.map(shard, jax.eval_shape(init))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    manager = ocp.CheckpointManager(args.out.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=2))
    done = manager.latest_step() or 0
    if done:
        params, opt_state = manager.restore(done, args=ocp.args.StandardRestore(like))
    else:
        params, opt_state = jax.jit(init, out_shardings=shardings)()

    if rank == 0:
        where = f"{args.processes} processes with {args.devices} devices each, mesh {dict(mesh.shape)}"
        print(f"{where}: {f'resumes after epoch {done}' if done else 'starts'}", flush=True)
    step = jax.jit(build_step(graphdef, optimizer), donate_argnums=(0, 1), out_shardings=(*shardings, None, None))
    by_image = NamedSharding(mesh, P(("fsdp", "data")))
    for epoch in range(done + 1, args.epochs + 1):
        # The order is a function of the epoch, so a run that resumes sees what it would have seen.
        order = np.random.default_rng(epoch).permutation(len(images))
        batches = order[: len(order) // args.batch_size * args.batch_size].reshape(
            -1, args.processes, args.batch_size // args.processes
        )
        # Each process reads its own images only.
        for batch in batches[:, rank]:
            inputs = (jax.make_array_from_process_local_data(by_image, part[batch]) for part in (images, labels))
            params, opt_state, loss, _ = step(params, opt_state, *inputs)
        manager.save(epoch, args=ocp.args.StandardSave((params, opt_state)))
        if rank == 0:
            print(f"epoch {epoch}: loss {loss:.4f}", flush=True)
        if epoch == args.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    manager.close()

    @jax.jit
    def accuracy(params, images, labels):
        return (nnx.merge(graphdef, params)(images).argmax(-1) == labels).mean()

    correct = accuracy(params, *test)
    if rank == 0:
        print(f"test accuracy {correct:.3f} after {max(done, args.epochs)} epochs", flush=True)
    jax.distributed.shutdown()


def launch(args: argparse.Namespace) -> str | None:
    """Runs the workers; returns what went wrong, if anything did."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1:{}".format(free.getsockname()[1])
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", address]
    processes, deadline = [], time.monotonic() + args.timeout
    try:
        for rank in range(args.processes):
            # In a session of their own: Ctrl-C is for the parent alone, which stops them.
            processes.append(subprocess.Popen([*command, str(rank)], stdin=subprocess.PIPE, start_new_session=True))
        print("started processes", *(process.pid for process in processes), flush=True)
        while None in (codes := [process.poll() for process in processes]) or any(codes):
            for rank, code in enumerate(codes):
                if code:
                    how = signal.Signals(-code).name if code < 0 else f"code {code}"
                    return f"process {rank} ended with {how}, so all are stopped"
            if time.monotonic() > deadline:
                return f"not done after {args.timeout} s, so all processes are stopped"
            time.sleep(0.05)
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
    return None


def main() -> int:
    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    parser = argparse.ArgumentParser(description=__doc__, usage="%(prog)s [options]", formatter_class=Formatter)
    parser.add_argument("--processes", type=int, default=2, help="how many processes")
    parser.add_argument("--devices", type=int, default=2, help="simulated CPU devices in each process")
    parser.add_argument("--fsdp", type=int, default=2, help="devices that share the params; the rest is data-parallel")
    parser.add_argument("--epochs", type=int, default=20, help="train until so many epochs are done")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a batch, over all devices")
    parser.add_argument("--kill-at", type=int, metavar="EPOCH", help="SIGKILL for all processes after this epoch")
    parser.add_argument("--out", type=Path, default=Path("out/multi_host"), help="folder of the checkpoints")
    parser.add_argument("--timeout", type=int, default=600, help="seconds after which all processes are stopped")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name, value in vars(args).items():
        if isinstance(value, int) and value < 1:
            parser.error(f"argument --{name.replace('_', '-')}: must be positive, got {value}")
    total = args.processes * args.devices
    if total % args.fsdp:
        parser.error(f"argument --fsdp: {args.fsdp} does not divide the {total} devices")
    if args.batch_size % total:
        parser.error(f"argument --batch-size: the {total} devices do not divide {args.batch_size}")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out).close()
    except OSError as error:
        parser.error(f"argument --out: cannot write to {args.out} ({error.strerror})")

    if args.worker:
        # The parent holds the other end of stdin: once it is gone, however it died, so is this process.
        threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
        worker(args, int(args.worker[1]), args.worker[0])
        return 0
    trouble = launch(args)
    if trouble:
        print(
            f"{parser.prog}: {trouble}. The same command resumes from the last checkpoint in {args.out}.",
            file=sys.stderr,
        )
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main())
