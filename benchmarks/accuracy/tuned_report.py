"""The tables and pictures of the tuned comparisons, from their CSV files alone."""

import pathlib
import sys

import matplotlib.pyplot as plt
import pandas as pd
import scipy.stats

PICTURES = pathlib.Path(__file__).parents[2] / "docs" / "figures" / "accuracy"
sys.path.insert(0, str(PICTURES.parent))
from themes import save  # noqa: E402

CLOSE = 1.0  # points below an arm's best rate that still count as working


class Tuned:
    """The runs of one study. Differences are from `none` at its own best rate, paired by seed."""

    def __init__(self, name, study, frame):
        self.name, self.study, self.frame = name, study, frame
        self.arms = [arm for arm in study.arms if arm in set(frame["arm"])]
        self.sweep = frame[frame["phase"] == "sweep"]
        self.final = frame[frame["phase"] == "final"]
        # Validation scores, a rate a row and an arm a column.
        self.curve = self.sweep.pivot_table(index="rate", columns="arm", values="validation")[self.arms]
        # Test scores, a seed a row and an arm a column. A seed that not every arm has finished does not count.
        self.test = self.final.pivot_table(index="seed", columns="arm", values="test").dropna()

    def rate(self, arm):
        return f"{self.curve[arm].idxmax():.3g}"

    def at_edge(self, arm):
        return self.curve[arm].idxmax() in (self.curve.index[0], self.curve.index[-1])

    def best(self, arm):
        """The test score of `none` at its rate, or the difference of another arm at its own from it."""
        if arm not in self.test:
            return "not run"
        at = f" at {self.rate(arm)}" + (" (edge)" if self.at_edge(arm) else "")
        if arm == "none":
            return f"{self.test[arm].mean():.2f} ± {self.test[arm].std():.2f}{at}"
        return f"{interval(self.test[arm] - self.test['none'])}{at}"

    def same_rate(self, arm):
        """The difference in validation score at the best rate of `none`, over the seeds of the sweep."""
        at = self.sweep[self.sweep["rate"] == self.curve["none"].idxmax()]
        table = at.pivot_table(index="seed", columns="arm", values="validation")
        return interval(table[arm] - table["none"])

    def works(self, arm):
        """The rates whose mean validation score is within a point of the arm's best."""
        good = self.curve.index[self.curve[arm] >= self.curve[arm].max() - CLOSE]
        return f"{good[0]:.3g} to {good[-1]:.3g} ({len(good)} of {len(self.curve)})"

    def shares(self, arm):
        frame = self.final if arm in set(self.final["arm"]) else self.sweep
        # Networks that fell apart have no share.
        shares = frame[frame["arm"] == arm].filter(regex="^share ").median()
        return {name.removeprefix("share ").removesuffix("/kernel"): f"{value:.2f}" for name, value in shares.items()}

    def about(self):
        study, model, task = self.study, self.study.model, self.study.task
        facts = [f"{task}", f"{type(model).__name__}, {model.norm} norm", study.optimizer]
        facts += [f"weight decay {study.weight_decay:g}", f"batch {study.batch}", f"{study.epochs} epochs"]
        facts += [f"of {study.steps} steps"] * bool(study.steps)
        for phase, of in (("sweep", self.sweep), ("final", self.final)):
            if len(of):
                facts.append(f"{phase}: seeds {', '.join(str(seed) for seed in sorted(of['seed'].unique()))}")
        made = [*self.frame["device"].dropna().unique(), *self.frame["versions"].dropna().unique()]
        return f"{', '.join(facts)}. {'; '.join(made)}."

    def table(self):
        """Mean validation score ± standard deviation for each rate and arm, then the test scores of each seed."""
        spread = self.sweep.pivot_table(index="rate", columns="arm", values="validation", aggfunc="std")
        cells = {
            arm: [f"{m:.2f} ± {s:.2f}" for m, s in zip(self.curve[arm], spread[arm], strict=True)] for arm in self.arms
        }
        return pd.DataFrame({"rate": [f"{rate:.3g}" for rate in self.curve.index], **cells})


def interval(differences):
    """Returns `mean [95 % interval]` of paired differences, by Student's t."""
    mean = differences.mean()
    if len(differences) < 2:
        return f"{mean:+.2f}"
    half = scipy.stats.sem(differences) * scipy.stats.t.ppf(0.975, len(differences) - 1)
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def across(results, cell):
    """One row a study, one column an arm."""
    return pd.DataFrame([{"study": r.name} | {arm: cell(r, arm) for arm in r.arms} for r in results]).fillna("")


def tables(results):
    """The tables of the report, by the name under which the documentation includes them."""
    finals = [r for r in results if len(r.test)]
    groups = {"rates": ("tuned-",), "scenes": ("segment", "detect"), "fine": ("fine",), "why": ("why-",)}
    made = {}
    for group, starts in groups.items():
        of = [r for r in finals if r.name.startswith(starts)]
        table = across(of, Tuned.best)
        if len(table):
            table.insert(1, "score", [r.study.task.unit for r in of])
            table["seeds"] = [len(r.test) for r in of]
            made[group] = table
    made["range"] = across(results, Tuned.works)
    made["same"] = across(results, lambda r, arm: "" if arm == "none" else r.same_rate(arm)).drop(columns="none")
    layers = [r for r in results if r.name.startswith(("why", "tuned-fashion-gn", "tuned-fashion-bn", "tuned-cifar"))]
    made["layers"] = pd.DataFrame(
        [{"study": r.name, "arm": arm} | r.shares(arm) for r in layers for arm in r.arms]
    ).fillna("")
    return {name: table for name, table in made.items() if len(table)}


def curves(results, width=2):
    """Draws the validation score over the learning rate, one panel a study."""

    def draw(theme):
        height = -(-len(results) // width)
        figure, grid = plt.subplots(height, width, figsize=(7.6, 2.6 * height), layout="constrained", squeeze=False)
        for axes, r in zip(grid.flat, results, strict=False):
            for number, arm in enumerate(r.arms):
                runs = r.sweep[r.sweep["arm"] == arm].groupby("rate")["validation"]
                style = {"marker": "osD^"[number], "linestyle": ("-", "--", ":", "-.")[number]}
                axes.errorbar(
                    runs.mean().index, runs.mean(), yerr=runs.std(), label=arm, markersize=3, capsize=2, **style
                )
            # What is far below the best says only that the rate is no good.
            top, low = r.curve.max().max(), r.curve.min().min()
            axes.set_ylim(max(low, top - 15) - 1, top + 1)
            axes.set_xscale("log", base=2)
            rates = r.curve.index
            axes.set_xticks(rates, [f"{rate:.2g}" for rate in rates], fontsize="x-small")
            axes.set_title(f"{r.name}: {r.study.task.unit}", fontsize="small")
            axes.set_xlabel("learning rate", fontsize="small")
            axes.tick_params(labelsize="x-small", which="both")
            axes.grid(alpha=0.3)
            axes.legend(fontsize="x-small")
        for axes in grid.flat[len(results) :]:
            axes.set_axis_off()
        return figure

    return draw


def report(studies, out, pictures):
    frames = {
        name: pd.read_csv(out / f"{name}.csv", float_precision="round_trip")
        for name in studies
        if (out / f"{name}.csv").exists()
    }
    results = [Tuned(name, studies[name], frame) for name, frame in frames.items()]
    parts = ["# Best against best", "Made by `python benchmarks/accuracy/tuned.py --report`."]
    for name, table in tables(results).items():
        text = table.to_markdown(index=False, disable_numparse=True)
        parts.append(f"<!-- --8<-- [start:{name}] -->\n{text}\n<!-- --8<-- [end:{name}] -->")
    parts.append("<!-- --8<-- [start:every] -->")
    for r in results:
        parts += [f"### {r.name}", r.about(), r.table().to_markdown(index=False, disable_numparse=True)]
    parts.append("<!-- --8<-- [end:every] -->")
    (out / "results.md").write_text("\n\n".join(parts) + "\n")

    pictures.mkdir(parents=True, exist_ok=True)
    groups = {"rates": ("tuned-",), "scenes": ("segment", "detect"), "fine": ("fine",)}
    for name, starts in groups.items():
        of = [r for r in results if r.name.startswith(starts)]
        if of:
            save(curves(of), f"tuned_{name}", pictures)
