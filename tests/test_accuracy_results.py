"""The published experiments are paired, and their tables follow from the published runs."""

import csv
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

FOLDER = Path(__file__).parents[1] / "benchmarks" / "accuracy"
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.csv"))
# SGD without decoupled decay: there both sides of the optimizer are the same step, and keep e^T w.
LINEAR = ["fashion-bn", "fashion-gn", "cifar-bn", "cifar-gn-few", "constraint-sgd-none", "constraint-sgd-l2"]


def runs(name):
    """Returns {arm: {seed: rows by epoch}}."""
    found = defaultdict(lambda: defaultdict(list))
    with (FOLDER / f"{name}.csv").open() as file:
        for row in csv.DictReader(file):
            found[row["arm"]][int(row["seed"])].append(row)
    return found


def last(seeds, column):
    return np.array([float(seeds[seed][-1][column]) for seed in sorted(seeds)])


def published(name):
    """Returns {arm: {column: text}} of the table of one experiment."""
    text = (FOLDER / "results.md").read_text().partition(f"\n`{name}`: ")[2].partition("\n**")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def test_every_experiment_is_published():
    titles = re.findall(r"^`(\S+)`: ", (FOLDER / "results.md").read_text(), re.M)
    assert EXPERIMENTS
    assert sorted(titles) == EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_has_the_same_seeds_and_all_epochs(name):
    arms = runs(name)
    epochs = max(int(row["epoch"]) for row in arms["none"][0])
    for seeds in arms.values():
        assert sorted(seeds) == list(range(2 if name == "resnet18-short" else 5))
        for rows in seeds.values():
            assert [int(row["epoch"]) for row in rows] == list(range(1, epochs + 1))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_tables_are_paired_t_intervals_of_the_runs(name):
    arms, table = runs(name), published(name)
    assert set(table) == set(arms)
    for arm, row in table.items():
        test = next(title for title in row if title.startswith("test "))
        for column, title, difference in (("test", test, "minus none"), ("loss", "training loss", "loss minus none")):
            values, shown = last(arms[arm], column), row[title]
            mean, std = map(float, shown.split("±"))
            digits = len(shown.rpartition(".")[2])
            rounding = 0.5001 * 10**-digits
            assert abs(mean - values.mean()) <= rounding
            assert abs(std - values.std(ddof=1)) <= rounding
            if arm == "none":
                assert row[difference] == ""
                continue
            paired = scipy.stats.ttest_rel(values, last(arms["none"], column))
            expected = [np.mean(values - last(arms["none"], column)), *paired.confidence_interval(0.95)]
            found = [float(number) for number in re.findall(r"[+-][\d.]+", row[difference])]
            np.testing.assert_allclose(found, expected, rtol=0, atol=rounding)


@pytest.mark.parametrize("name", LINEAR)
def test_under_sgd_both_sides_are_the_same_step_and_keep_the_sums(name):
    arms = runs(name)
    for seed in range(5):
        before, after = (float(arms[arm][seed][0]["loss"]) for arm in ("before", "after"))
        # Four to six digits are kept, and an epoch of training enlarges the rounding of float32.
        assert before == pytest.approx(after, rel=1e-3)
        assert before != pytest.approx(float(arms["none"][seed][0]["loss"]), rel=1e-3)
    for arm in ("before", "after"):
        assert last(arms[arm], "drift").max() < 1e-12
    assert last(arms["none"], "drift").min() > 1e-3
