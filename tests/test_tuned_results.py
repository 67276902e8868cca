"""The tuned comparisons choose rates without the test set, are paired, and their tables follow from their runs."""

import csv
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

FOLDER = Path(__file__).parents[1] / "benchmarks" / "accuracy" / "tuned"
STUDIES = sorted(path.stem for path in FOLDER.glob("*.csv"))
GROUPS = ("rates", "scenes", "fine", "why", "why_layers")


def runs(name, phase):
    """Returns {arm: {rate: {seed: row}}} of one phase."""
    found = defaultdict(lambda: defaultdict(dict))
    with (FOLDER / f"{name}.csv").open() as file:
        for row in csv.DictReader(file):
            if row["phase"] == phase:
                assert int(row["seed"]) not in found[row["arm"]][float(row["rate"])]
                found[row["arm"]][float(row["rate"])][int(row["seed"])] = row
    return found


def published():
    """Returns {study: {column: text}} of the tables of best against best."""
    text = (FOLDER / "results.md").read_text()
    names, found = dict(re.findall(r"^\*\*(.+)\*\*\n\n`(\S+)`: ", text, re.M)), {}
    for group in GROUPS:
        part = text.partition(f"[start:{group}]")[2].partition("[end:")[0]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
        found |= {names[row[0]]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    return found


def best_rate(sweep, arm):
    means = {rate: np.mean([float(row["validation"]) for row in seeds.values()]) for rate, seeds in sweep[arm].items()}
    return max(means, key=means.__getitem__)


def finished(name):
    """Returns {arm: test scores} over the fresh seeds that every arm has."""
    final = {arm: next(iter(rates.values())) for arm, rates in runs(name, "final").items()}
    common = sorted(set.intersection(*(set(seeds) for seeds in final.values()))) if final else []
    return {arm: np.array([float(seeds[seed]["test"]) for seed in common]) for arm, seeds in final.items()}


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_published(name):
    assert re.search(f"^`{name}`: ", (FOLDER / "results.md").read_text(), re.M)


@pytest.mark.parametrize("name", STUDIES)
def test_rates_are_chosen_on_the_validation_part_and_seeds_are_paired_and_fresh(name):
    sweep, final = runs(name, "sweep"), runs(name, "final")
    rates = [{rate: set(seeds) for rate, seeds in of.items()} for of in sweep.values()]
    assert all(each == rates[0] for each in rates)
    assert len({frozenset(seeds) for seeds in rates[0].values()}) == 1
    for arm, of in final.items():
        assert list(of) == [best_rate(sweep, arm)]
        assert not set(of[best_rate(sweep, arm)]) & set.union(*rates[0].values())
    assert all(not row["test"] for of in sweep.values() for seeds in of.values() for row in seeds.values())


@pytest.mark.parametrize("name", [name for name in STUDIES if runs(name, "final")])
def test_the_tables_are_paired_t_intervals_at_each_arms_best_rate(name):
    scores, row, sweep = finished(name), published()[name], runs(name, "sweep")
    assert int(row["seeds"]) == len(scores["none"])
    mean, std = map(float, re.findall(r"[\d.]+", row["none"])[:2])
    assert mean == pytest.approx(scores["none"].mean(), abs=0.00501)
    assert std == pytest.approx(scores["none"].std(ddof=1), abs=0.00501)
    for arm, values in scores.items():
        assert float(re.search(r" at\s([\d.e-]+)", row[arm])[1]) == pytest.approx(best_rate(sweep, arm), rel=0.005)
        if arm != "none":
            paired = scipy.stats.ttest_rel(values, scores["none"])
            expected = [np.mean(values - scores["none"]), *paired.confidence_interval(0.95)]
            found = [float(number) for number in re.findall(r"[+-]\d[\d.]*", row[arm])[:3]]
            np.testing.assert_allclose(found, expected, rtol=0, atol=0.00501)
