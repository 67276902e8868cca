"""Does Gradient Centralization help? The paper's claims on real data, with and without, paired by seed.

    python benchmarks/accuracy --list
    python benchmarks/accuracy fashion-bn cifar-gn --data FOLDER
    python benchmarks/accuracy --report

FOLDER holds fashion-mnist/ (the official IDX files), cifar100/ (cifar100.npz with x_train, y_train, x_test and
y_test) and tinyshakespeare.txt. Without --data the images come from keras.datasets, which downloads them.

A finished run is appended to benchmarks/accuracy/EXPERIMENT.csv and is not run again, so an interrupted command is
resumed by giving it once more, and two processes can share the experiments. --report makes the tables
(benchmarks/accuracy/results.md) and the pictures (docs/figures/accuracy) from the CSV files alone. On a GPU the seeds
of an arm are trained side by side (vmap).
"""

import argparse
import pathlib

import jax
from experiments import EXPERIMENTS
from report import PICTURES, report
from training import run

HERE = pathlib.Path(__file__).parent


def main():
    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Formatter)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=", ".join(EXPERIMENTS))
    parser.add_argument("--data", type=pathlib.Path, help="folder of the data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--side-by-side", type=int, help="seeds trained in one step; None is all, on a CPU one")
    parser.add_argument("--out", type=pathlib.Path, default=HERE, help="folder of the results")
    parser.add_argument("--pictures", type=pathlib.Path, default=PICTURES, help="folder of the pictures")
    parser.add_argument("--list", action="store_true", help="print the experiments and stop")
    parser.add_argument("--report", action="store_true", help="make tables and pictures from the results")
    args = parser.parse_args()
    if unknown := set(args.experiments) - set(EXPERIMENTS):
        parser.error(f"no experiment {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}")
    if args.list:
        for name, experiment in EXPERIMENTS.items():
            print(f"{name}: {experiment}\n")
        return
    if not args.experiments and not args.report:
        parser.error("name an experiment, or give --report")
    args.out.mkdir(parents=True, exist_ok=True)
    side_by_side = args.side_by_side or (1 if jax.default_backend() == "cpu" else len(args.seeds))
    if args.experiments:
        run(args.experiments, args.data, args.seeds, side_by_side, args.out)
    if args.report:
        report(args.out, args.pictures)


if __name__ == "__main__":
    main()
