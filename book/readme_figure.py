"""Write the README's figure from the committed results: `python book/readme_figure.py`, after `lrkd study core`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from kit import display, figures

from lrkd.distill import methods
from lrkd.evaluation import statistics
from lrkd.files import read_table


def figure(table: pd.DataFrame) -> display.Shown:
    """A results table of `lrkd study core` -> the first page's forest plot, at its hardest side."""
    test = table[(table["role"] == "student") & (table["protocol"] == "test")]
    hard = test[test["side"] == test["side"].min()]
    gains = statistics.paired_differences(hard)
    display.style()
    ax = plt.subplots(figsize=(8, 1.2 + 0.28 * len(gains)))[1]
    figures.verdict(ax, gains, {name: method.title for name, method in methods.METHODS.items()})
    ax.set_title(f"What distillation gains at {hard['side'].min()} pixels a side (95 % intervals over paired seeds)")
    return display.show(ax, "Accuracy gained over no distillation, by method.", dpi=100)


def main() -> None:
    here = Path(__file__).resolve().parent
    (here / "readme-forest.webp").write_bytes(figure(read_table(here / "results" / "core.csv")).image)


if __name__ == "__main__":
    main()
