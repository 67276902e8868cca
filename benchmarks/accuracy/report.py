"""The tables and pictures of the experiments, from their CSV files alone."""

import pathlib
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.stats
from experiments import ARMS, EXPERIMENTS
from matplotlib.ticker import MaxNLocator
from training import read

PICTURES = pathlib.Path(__file__).parents[2] / "docs" / "figures" / "accuracy"
sys.path.insert(0, str(PICTURES.parent))
from themes import save  # noqa: E402

TRAINED = ("fashion", "cifar", "resnet18")
SMOOTHNESS = ("fashion-bn", "cifar-bn", "cifar-gn")
SLOPES = ("gradient norm", "loss change", "gradient change")
STYLES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
LOGARITHMIC = ("loss change", "gradient change", "drift")


def interval(differences, digits):
    """Returns `mean [95 % interval]` of paired differences, by Student's t."""
    mean = np.mean(differences)
    if len(differences) < 2:
        return f"{mean:+.{digits}f}"
    half = half_width(differences)
    return f"{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"


def half_width(differences):
    return scipy.stats.sem(differences) * scipy.stats.t.ppf(0.975, len(differences) - 1)


class Results:
    """The runs of one experiment. Differences are from no centralization, paired by seed."""

    def __init__(self, name, frame):
        self.name, self.frame, self.experiment = name, frame, EXPERIMENTS[name]
        self.last = frame[frame["epoch"] == self.experiment.epochs].set_index(["arm", "seed"])
        self.arms = [arm for arm in self.experiment.arms if arm in set(frame["arm"])]
        self.text = self.experiment.data == "tinyshakespeare"
        self.labels = {"loss": "training loss", "test": "test loss" if self.text else "test accuracy %"}

    def final(self, arm, column):
        return self.last.loc[arm][column]

    def minus_none(self, arm, column):
        return (self.final(arm, column) - self.final("none", column)).dropna()

    def difference(self, arm, column, digits):
        return interval(self.minus_none(arm, column), digits) if arm != "none" else self.spread(arm, column, digits)

    def spread(self, arm, column, digits):
        values = self.final(arm, column)
        return f"{values.mean():.{digits}f}" + (f" ± {values.std():.{digits}f}" if len(values) > 1 else "")

    def epochs_to_loss_of_none(self, arm):
        """The epoch whose training loss is at most `none`'s last one: the mean over the seeds that get there."""
        losses = self.frame[self.frame["arm"] == arm].pivot(index="seed", columns="epoch", values="loss")
        low = losses.le(self.final("none", "loss"), axis="index").reindex(losses.index)
        reached = low.idxmax(axis="columns")[low.any(axis="columns")]
        return f"{reached.mean():.1f} ({len(reached)} of {len(losses)})" if len(reached) else "not reached"

    def share(self, arm):
        return f"{self.frame[self.frame['arm'] == arm]['share'].mean():.2f}"

    def drift(self, arm):
        return f"{self.final(arm, 'drift').mean():.1e}"

    def about(self):
        e, model = self.experiment, self.experiment.model
        images = f", first {e.images:,} training images" if e.images else ""
        facts = [f"{e.data}{images}", f"{type(model).__name__} ({getattr(model, 'norm', 'layer')} norm)", e.optimizer]
        facts += [f"learning rate {e.lr:g}", f"weight decay {e.weight_decay:g}", f"batch {e.batch}"]
        facts += [f"{e.epochs} epochs" + (f" of {e.steps} steps" if e.steps else "")]
        facts += ["crop and flip"] * e.augment + ["depthwise"] * getattr(model, "depthwise", False)
        made = [*self.frame["device"].dropna().unique(), *self.frame["versions"].dropna().unique()]
        return f"{', '.join(facts)}. {'; '.join(made)}."

    def table(self):
        """One row an arm."""
        test, digits = self.labels["test"], 3 if self.text else 2
        rows = []
        for arm in self.arms:
            row = {
                "arm": arm,
                "seeds": len(self.last.loc[arm]),
                test: self.spread(arm, "test", digits),
                "minus none": "" if arm == "none" else self.difference(arm, "test", digits),
                "training loss": self.spread(arm, "loss", 4),
                "loss minus none": "" if arm == "none" else self.difference(arm, "loss", 4),
                "epochs to none's last loss": self.epochs_to_loss_of_none(arm),
                "GC share": self.share(arm),
                "drift": self.drift(arm),
            }
            if self.text:
                row["unused rows"] = f"{self.final(arm, 'unused rows').mean():.3f}"
            rows.append(row)
        return pd.DataFrame(rows)

    def ratios(self, column):
        """Ratios to `none`: the median over epochs in each seed, of these the median and the range."""
        table = self.frame.pivot(index=["seed", "epoch"], columns="arm", values=column)
        each = table.div(table["none"], axis="index").groupby("seed").median()
        return {arm: f"{each[arm].median():.2f} ({each[arm].min():.2f}–{each[arm].max():.2f})" for arm in self.arms[1:]}


def across(results, cell):
    """One row an experiment, one column an arm."""
    rows = [{"experiment": r.name} | {arm: cell(r, arm) for arm in r.arms} for r in results]
    return pd.DataFrame(rows).fillna("")


def named(results, *starts):
    return [r for r in results if r.name.startswith(starts)]


def tables(results):
    """The tables of the report, by the name under which the documentation includes them."""
    trained = named(results, *TRAINED)
    made = {
        "accuracy": across(trained, lambda r, arm: r.difference(arm, "test", 2)),
        "loss": across(trained, lambda r, arm: r.difference(arm, "loss", 3)),
        "epochs": across(trained, Results.epochs_to_loss_of_none),
        "share": across(trained, Results.share),
        "constraint": across(named(results, "constraint"), Results.drift),
        "constraint_accuracy": across(named(results, "constraint"), lambda r, arm: r.difference(arm, "test", 2)),
        "tuning": across(named(results, "fine-tune"), lambda r, arm: r.difference(arm, "test", 2)),
        "tuning_loss": across(named(results, "fine-tune"), lambda r, arm: r.difference(arm, "loss", 3)),
        "hazards": across(named(results, "hazard"), lambda r, arm: r.difference(arm, "test", 2)),
    }
    smooth = [r for r in results if r.name in SMOOTHNESS]
    if smooth:
        ratios = [pd.DataFrame({f"{column} / none": r.ratios(column) for column in SLOPES}) for r in smooth]
        keys = [r.name for r in smooth]
        made["smoothness"] = pd.concat(ratios, keys=keys, names=["experiment", "arm"]).reset_index()
    for r in named(results, "characters"):
        made["characters"] = r.table().drop(columns=["seeds", "GC share"])
    return {name: table for name, table in made.items() if len(table)}


def curve(axes, frame, column, label, number):
    """The mean over seeds and its standard deviation, on a logarithmic axis those of the logarithm."""
    table = frame.pivot(index="epoch", columns="seed", values=column).dropna()
    forth, back = (np.log, np.exp) if axes.get_yscale() == "log" else (lambda x: x, lambda x: x)
    table = forth(table)
    mean, std = table.mean(axis=1), table.std(axis=1).fillna(0)
    style = STYLES[number % len(STYLES)]
    axes.plot(table.index, back(mean), linestyle=style, color=f"C{number}", label=label)
    axes.fill_between(table.index, back(mean - std), back(mean + std), color=f"C{number}", alpha=0.15, linewidth=0)


def panels(cells, width=2):
    """One panel a cell, `width` in a row; a cell is the title, whether y is logarithmic, and the lines."""

    def draw(theme):
        height = -(-len(cells) // width)
        figure, grid = plt.subplots(height, width, figsize=(7.6, 2.6 * height), layout="constrained", squeeze=False)
        for axes, (title, logarithmic, lines) in zip(grid.flat, cells, strict=False):
            axes.set_yscale("log" if logarithmic else "linear")
            for number, (frame, column, label) in enumerate(lines):
                # An arm looks the same in every panel.
                curve(axes, frame, column, label, list(ARMS).index(label) if label in ARMS else number)
            axes.set_title(title, fontsize="small")
            axes.set_xlabel("epoch", fontsize="small")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.tick_params(labelsize="small", which="both")
            axes.grid(alpha=0.3)
            axes.legend(fontsize="x-small")
        for axes in grid.flat[len(cells) :]:
            axes.set_axis_off()
        return figure

    return draw


def by_arm(results, *columns):
    return [
        (
            f"{r.name}: {r.labels.get(column, column)}",
            column in LOGARITHMIC,
            [(r.frame[r.frame["arm"] == arm], column, arm) for arm in r.arms],
        )
        for r in results
        for column in columns
    ]


def by_layer(results, *arms):
    cells = []
    for r in results:
        for arm in arms:
            frame = r.frame[r.frame["arm"] == arm]
            shares = [column for column in frame if column.startswith("share ")]
            lines = [(frame, column, column.removeprefix("share ")) for column in shares]
            cells.append((f"{r.name}: share of each layer, {arm}", False, lines))
    return cells


def overview(results):
    """Draws the differences in test accuracy of every experiment, with their intervals."""
    arms = ("before", "after", "conv only", "optax.centralize")

    def draw(theme):
        figure, axes = plt.subplots(figsize=(7.6, 0.62 * len(results) + 1), layout="constrained")
        for number, arm in enumerate(arms):
            has = [(place, r.minus_none(arm, "test")) for place, r in enumerate(results) if arm in r.arms]
            axes.errorbar(
                [np.mean(d) for _, d in has],
                [place + 0.18 * (number - 1.5) for place, _ in has],
                xerr=[half_width(d) if len(d) > 1 else 0 for _, d in has],
                fmt="osD^"[number],
                markersize=4,
                capsize=2,
                linewidth=1,
                color=f"C{list(ARMS).index(arm)}",
                label=arm,
            )
        axes.axvline(0, color=theme.faint, linewidth=1)
        axes.set_yticks(range(len(results)), [r.name for r in results])
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.set_xlabel("test accuracy minus that of none, points")
        axes.grid(axis="x", alpha=0.3)
        axes.legend(fontsize="small")
        return figure

    return draw


def report(out, pictures):
    results = [Results(name, read(out / f"{name}.csv")) for name in EXPERIMENTS if (out / f"{name}.csv").exists()]
    parts = ["# Gradient Centralization on and off", "Made by `python benchmarks/accuracy --report`."]
    for name, table in tables(results).items():
        text = table.to_markdown(index=False, disable_numparse=True)
        parts.append(f"<!-- --8<-- [start:{name}] -->\n{text}\n<!-- --8<-- [end:{name}] -->")
    parts.append("<!-- --8<-- [start:every] -->")
    for r in results:
        parts += [f"### {r.name}", r.about(), r.table().to_markdown(index=False, disable_numparse=True)]
    parts.append("<!-- --8<-- [end:every] -->")
    (out / "results.md").write_text("\n\n".join(parts) + "\n")

    pictures.mkdir(parents=True, exist_ok=True)
    smooth = [r for r in results if r.name in SMOOTHNESS]
    figures = {"overview": overview(named(results, *TRAINED, "fine-tune", "hazard"))}
    for group in dict.fromkeys(r.name.partition("-")[0] for r in results):
        columns = ("drift",) if group == "constraint" else ("loss", "test")
        figures[group] = panels(by_arm(named(results, group), *columns))
    if smooth:
        figures["smoothness"] = panels(by_arm(smooth, *SLOPES), len(SLOPES))
        figures["layers"] = panels(by_layer(smooth, "none", "before"))
    for name, draw in figures.items():
        save(draw, name, pictures)
