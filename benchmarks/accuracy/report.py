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
# No line breaks within an interval, a number with its deviation, a count.
NBSP, JOINER = "\N{NO-BREAK SPACE}", "\N{WORD JOINER}"
# How the tables and the pictures call the experiments.
TITLES = {
    "fashion-bn": "Fashion-MNIST, batch norm",
    "fashion-gn": "Fashion-MNIST, group norm",
    "fashion-bn-adam": "Fashion-MNIST, batch norm, Adam",
    "fashion-bn-adamw": "Fashion-MNIST, batch norm, AdamW",
    "cifar-bn": "CIFAR-100, batch norm",
    "cifar-gn": "CIFAR-100, group norm",
    "cifar-gn-few": "CIFAR-100, group norm, 10,000 images",
    "constraint-sgd-none": "SGD, no decay",
    "constraint-sgd-l2": "SGD, L2 decay",
    "constraint-sgdw": "SGD, decoupled decay",
    "constraint-adam-l2": "Adam, L2 decay",
    "constraint-adamw": "Adam, decoupled decay",
    "fine-tune-fashion": "Fashion-MNIST, fine-tuning",
    "fine-tune-cifar": "CIFAR-100, fine-tuning",
    "resnet18-short": "CIFAR-100, ResNet-18, batch norm, 30 epochs",
    "characters": "characters",
    "hazard-decay": "Fashion-MNIST, batch norm, strong decay",
    "hazard-depthwise": "Fashion-MNIST, batch norm, depthwise",
}
STYLES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
LOGARITHMIC = ("loss change", "gradient change")


def interval(differences, digits):
    """Returns `mean [95 % interval]` of paired differences, by Student's t."""
    mean = np.mean(differences)
    if len(differences) < 2:
        return f"{mean:+.{digits}f}"
    half = scipy.stats.sem(differences) * scipy.stats.t.ppf(0.975, len(differences) - 1)
    return f"{mean:+.{digits}f} [{mean - half:+.{digits}f},{NBSP}{mean + half:+.{digits}f}]"


class Results:
    """The runs of one experiment. Differences are from no centralization, paired by seed."""

    def __init__(self, name, frame):
        self.name, self.frame, self.experiment = name, frame, EXPERIMENTS[name]
        self.title = TITLES.get(name, name)
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
        return f"{values.mean():.{digits}f}" + (
            f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{values.std():.{digits}f}" if len(values) > 1 else ""
        )

    def epochs_to_loss_of_none(self, arm):
        """The epoch whose training loss is at most `none`'s last one: the mean over the seeds that get there."""
        losses = self.frame[self.frame["arm"] == arm].pivot(index="seed", columns="epoch", values="loss")
        low = losses.le(self.final("none", "loss"), axis="index").reindex(losses.index)
        reached = low.idxmax(axis="columns")[low.any(axis="columns")]
        return (
            f"{reached.mean():.1f} ({len(reached)}\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}{len(losses)})"
            if len(reached)
            else "not reached"
        )

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
        return {
            arm: f"{each[arm].median():.2f} ({each[arm].min():.2f}{JOINER}–{JOINER}{each[arm].max():.2f})"
            for arm in self.arms[1:]
        }


def across(results, cell):
    """One row an experiment, one column an arm."""
    rows = [{"task": r.title} | {arm: cell(r, arm) for arm in r.arms} for r in results]
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
        "hazards": across(named(results, "hazard"), lambda r, arm: r.difference(arm, "test", 2)),
    }
    smooth = [r for r in results if r.name in SMOOTHNESS]
    if smooth:
        ratios = [pd.DataFrame({f"{column} / none": r.ratios(column) for column in SLOPES}) for r in smooth]
        keys = [r.title for r in smooth]
        made["smoothness"] = pd.concat(ratios, keys=keys, names=["task", "arm"]).reset_index()
    for r in named(results, "characters"):
        made["characters"] = r.table().drop(columns=["seeds", "epochs to none's last loss", "GC share"])
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


def name_curves(axes):
    """Writes the label of each curve beside its end, in its colour, as a legend that covers nothing."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [(to_axes.transform(line.get_xydata()[-1])[1], line) for line in axes.get_lines()]
    place = -np.inf
    for number, (end, line) in enumerate(sorted(ends, key=lambda pair: pair[0])):
        # Apart from the one below, with room for those above, and beside the panel if the curve has left it.
        place = max(min(max(end, 0), 1 - 0.09 * (len(ends) - 1 - number)), place + 0.09)
        axes.text(
            1.03,
            place,
            line.get_label(),
            color=line.get_color(),
            fontsize="small",
            va="center",
            transform=axes.transAxes,
        )


def panels(cells):
    """Panels one above the other; a cell is the title, whether y is logarithmic, and the lines."""

    def draw(theme):
        # As wide as the column of a phone, or as half of a page.
        figure, column = plt.subplots(
            len(cells), figsize=(3.8, 2.5 * len(cells)), layout="constrained", squeeze=False, sharex=True
        )
        for axes, (title, logarithmic, lines) in zip(column.flat, cells, strict=True):
            axes.set_yscale("log" if logarithmic else "linear")
            for number, (frame, column, label) in enumerate(lines):
                # An arm looks the same in every panel.
                curve(axes, frame, column, label, list(ARMS).index(label) if label in ARMS else number)
            axes.set_title(title, fontsize="medium", loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            name_curves(axes)
        axes.set_xlabel("epoch")
        return figure

    return draw


def by_arm(results, column):
    return [
        (
            f"{r.title}\n{r.labels.get(column, column)}",
            column in LOGARITHMIC,
            [(r.frame[r.frame["arm"] == arm], column, arm) for arm in r.arms],
        )
        for r in results
    ]


def by_layer(results, arm):
    cells = []
    for r in results:
        frame = r.frame[r.frame["arm"] == arm]
        shares = [column for column in frame if column.startswith("share ")]
        lines = [(frame, column, column.removeprefix("share ")) for column in shares]
        cells.append((f"{r.title}\nshare of each layer, {arm}", False, lines))
    return cells


def sections(tables):
    """Tables by name as Markdown, between the marks by which the pages include them."""
    texts = {name: table.to_markdown(index=False, disable_numparse=True) for name, table in tables.items()}
    return [f"<!-- --8<-- [start:{name}] -->\n{text}\n<!-- --8<-- [end:{name}] -->" for name, text in texts.items()]


def report(out, pictures):
    results = [Results(name, read(out / f"{name}.csv")) for name in EXPERIMENTS if (out / f"{name}.csv").exists()]
    parts = ["# Gradient Centralization on and off", "Made by `python benchmarks/accuracy --report`."]
    parts += sections(tables(results))
    parts.append("<!-- --8<-- [start:every] -->")
    for r in results:
        parts += [
            f"**{r.title}**",
            f"`{r.name}`: {r.about()}",
            r.table().to_markdown(index=False, disable_numparse=True),
        ]
    parts.append("<!-- --8<-- [end:every] -->")
    (out / "results.md").write_text("\n\n".join(parts) + "\n")

    pictures.mkdir(parents=True, exist_ok=True)
    smooth = [r for r in results if r.name in SMOOTHNESS]
    figures = {}
    for group in ("fashion", "cifar", "characters"):
        figures |= {f"{group}_{column}": panels(by_arm(named(results, group), column)) for column in ("loss", "test")}
    if smooth:
        figures |= {f"smoothness_{slope.replace(' ', '_')}": panels(by_arm(smooth, slope)) for slope in SLOPES}
        figures |= {f"layers_{arm}": panels(by_layer(smooth, arm)) for arm in ("none", "before")}
    for name, draw in figures.items():
        save(draw, name, pictures)
