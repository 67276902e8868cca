"""The tables and pictures of the tuned comparisons, from their CSV files alone."""

import dataclasses

import matplotlib.pyplot as plt
import pandas as pd
import scipy.stats
from experiments import ARMS
from report import NBSP, STYLES, name_curves, save, sections

# How the tables and the pictures call the studies.
TITLES = {
    "tuned-fashion": "Fashion-MNIST",
    "tuned-cifar": "CIFAR-100",
    "tuned-fashion-adamw": "Fashion-MNIST, AdamW",
    "segment": "segmentation",
    "detect": "detection",
    "fine": "five kinds of tops",
    "fine-tuned": "five kinds of tops, fine-tuning",
    "why-layers": "GC on some layers",
    "why-mean": "a mean over the batch taken away before group norm",
    "why-scale": "batch norm that takes no mean away",
    "why-norm-first": "batch norm before each convolution",
    "why-centred": "group norm, inputs centred by hand",
    "why-mean-cifar": "CIFAR-100, a mean over the batch taken away before group norm",
    "why-centred-cifar": "CIFAR-100, group norm, inputs centred by hand",
}
NORMS = {"gn": "group norm", "bn": "batch norm"}
CLOSE = 1.0  # points below an arm's best rate that still count as working


class Tuned:
    """The runs of one study. Differences are from `none` at its own best rate, paired by seed."""

    def __init__(self, name, study, frame):
        self.name, self.study, self.frame = name, study, frame
        group, _, norm = name.rpartition("-")
        self.group = group if norm in NORMS else name
        self.title = TITLES.get(self.group, self.group) + (f", {NORMS[norm]}" if norm in NORMS else "")
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
        at = f" at{NBSP}{self.rate(arm)}" + f"{NBSP}(edge)" * self.at_edge(arm)
        if arm == "none":
            return f"{self.test[arm].mean():.2f}{NBSP}±{NBSP}{self.test[arm].std():.2f}{at}"
        return f"{interval(self.test[arm] - self.test['none'])}{at}"

    def works(self, arm, bar):
        """The rates whose mean validation score is within a point of the best of the arm `bar`."""
        good = self.curve.index[self.curve[arm] >= self.curve[bar].max() - CLOSE]
        return f"{good[0]:.3g} to {good[-1]:.3g} ({len(good)}{NBSP}rates)"

    def shares(self):
        """What GC would remove of each weight's gradient without it, and removes with it."""
        # Networks that fell apart have no share.
        medians = self.final.groupby("arm")[list(self.final.filter(regex="^share "))].median()
        shown = medians.loc["none"].map("{:.2f}".format) + f"{NBSP}→{NBSP}" + medians.loc["before"].map("{:.2f}".format)
        return {name.removeprefix("share ").removesuffix("/kernel"): cell for name, cell in shown.items()}

    def about(self):
        study, model, task = self.study, self.study.model, self.study.task
        changed = [f for f in dataclasses.fields(task) if getattr(task, f.name) != f.default]
        facts = [f"{type(task).__name__}({', '.join(f'{f.name}={getattr(task, f.name)!r}' for f in changed)})"]
        facts += [f"{type(model).__name__} ({model.norm} norm)", study.optimizer]
        facts += [f"weight decay {study.weight_decay:g}", f"batch {study.batch}"]
        facts += [f"{study.epochs} epochs" + (f" of {study.steps} steps" if study.steps else "")]
        for phase, of in (("sweep", self.sweep), ("final", self.final)):
            if len(of):
                facts.append(f"{phase}: seeds {of['seed'].min()} to {of['seed'].max()}")
        made = [*self.frame["device"].dropna().unique(), *self.frame["versions"].dropna().unique()]
        return f"{', '.join(facts)}. {'; '.join(made)}."

    def table(self):
        """Mean validation score ± standard deviation for each rate and arm."""
        runs = self.sweep.groupby(["arm", "rate"])["validation"]
        cells = runs.mean().map("{:.2f}".format) + f"{NBSP}±{NBSP}" + runs.std().map("{:.2f}".format)
        return pd.DataFrame(
            {"rate": [f"{rate:.3g}" for rate in self.curve.index]} | {arm: cells[arm].to_list() for arm in self.arms}
        )


def interval(differences):
    """Returns `mean [95 % interval]` of paired differences, by Student's t."""
    mean = differences.mean()
    if len(differences) < 2:
        return f"{mean:+.2f}"
    half = scipy.stats.sem(differences) * scipy.stats.t.ppf(0.975, len(differences) - 1)
    return f"{mean:+.2f} [{mean - half:+.2f},{NBSP}{mean + half:+.2f}]"


def best(results):
    """One row a study, one column an arm."""
    table = pd.DataFrame([{"task": r.title} | {arm: r.best(arm) for arm in r.arms} for r in results]).fillna("")
    units = [r.study.task.unit for r in results]
    if len(set(units)) > 1:
        table.insert(1, "score", units)
    return table.assign(seeds=[len(r.test) for r in results])


def summary(results):
    """For the page that sums up."""
    return pd.DataFrame([{"task": r.title, "without": r.best("none"), "with": r.best("before")} for r in results])


def tables(results):
    """The tables of the report, by the name under which the documentation includes them."""
    finals = [r for r in results if len(r.test)]
    groups = {
        "rates": ("tuned-",),
        "scenes": ("segment", "detect"),
        "fine": ("fine",),
        "why": ("why-mean", "why-scale", "why-norm-first", "why-centred"),
        "why_layers": ("why-layers",),
    }
    made = {group: [r for r in finals if r.name.startswith(starts)] for group, starts in groups.items()}
    made = {group: best(of) for group, of in made.items() if of}
    tuned = [r for r in finals if not r.name.startswith("why")]
    if tuned:
        made["summary"] = summary(tuned)
    # A rate of scenes has two seeds, whose scores differ by more than a point. At an edge, the range is cut off.
    wide = [r for r in results if r.name.startswith(("tuned", "fine")) and not r.at_edge("none")]
    made["range"] = pd.DataFrame(
        [
            {
                "task": r.title,
                "none": r.works("none", "none"),
                "before": r.works("before", "before"),
                "before, by the best of none": r.works("before", "none"),
            }
            for r in wide
        ]
    )
    single = ("tuned-fashion-gn", "tuned-fashion-bn", "tuned-cifar", *groups["why"])
    layers = [{"task": r.title} | r.shares() for r in finals if r.name.startswith(single)]
    made["layers"] = pd.DataFrame(layers)
    return {name: table for name, table in made.items() if len(table)}


def curves(results):
    """Draws the validation score over the learning rate, one panel a study."""

    def draw(theme):
        # As wide as the column of a phone, or as half of a page.
        figure, column = plt.subplots(
            len(results), figsize=(3.8, 2.5 * len(results)), layout="constrained", squeeze=False, sharex=True
        )
        for axes, r in zip(column.flat, results, strict=True):
            for arm in r.arms:
                runs = r.sweep[r.sweep["arm"] == arm].groupby("rate")["validation"]
                mean, std = runs.mean(), runs.std().fillna(0)
                number = list(ARMS).index(arm)
                style = {"linestyle": STYLES[number % len(STYLES)], "marker": "o", "markersize": 3}
                axes.plot(mean.index, mean, color=f"C{number}", label=arm, **style)
                axes.fill_between(mean.index, mean - std, mean + std, color=f"C{number}", alpha=0.15, linewidth=0)
            # What is far below the best says only that the rate is no good. A detector may find nothing at all.
            top, low = r.curve.max().max(), r.curve.min().min()
            axes.set_ylim((max(low, top - 20) if low else 0) - 1, top + 1)
            axes.set_xscale("log", base=2)
            axes.set_xticks(r.curve.index, [f"{rate:.3g}" for rate in r.curve.index], rotation=45)
            axes.set_title(f"{r.title}\nvalidation {r.study.task.unit}", fontsize="medium", loc="left")
            axes.grid(alpha=0.3)
            name_curves(axes)
        axes.set_xlabel("learning rate")
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
    parts += sections(tables(results))
    parts.append("<!-- --8<-- [start:every] -->")
    for r in results:
        table = r.table().to_markdown(index=False, disable_numparse=True)
        parts += [f"**{r.title}**", f"`{r.name}`: {r.about()}", table]
    parts.append("<!-- --8<-- [end:every] -->")
    (out / "results.md").write_text("\n\n".join(parts) + "\n")

    pictures.mkdir(parents=True, exist_ok=True)
    for group in dict.fromkeys(r.group for r in results if not r.name.startswith("why")):
        of = [r for r in results if r.group == group]
        save(curves(of), "tuned_" + group.removeprefix("tuned-").replace("-", "_"), pictures)
