"""Accuracy by context as a table, beside the published figures."""

from rich.console import Console
from rich.table import Table

# LRS2, K = 5, 7, 9, 11, 13, 15, in %: arXiv 2210.15563 and 2204.02090. Parameters in millions.
PUBLISHED_LRS2 = {
    "SyncNet": (13.6, (75.8, 82.3, 87.6, 91.8, 94.5, 96.1)),
    "Perfect Match": (13.6, (88.1, 93.8, 96.4, 97.9, 98.7, 99.1)),
    "AVST": (42.4, (92.0, 95.5, 97.7, 98.8, 99.3, 99.6)),
    "VocaLiST": (80.1, (92.8, 96.7, 98.4, 99.3, 99.6, 99.8)),
    "VocaLiST, reproduced": (80.1, (92.44, 96.52, 98.27, 99.13, 99.53, 99.76)),
    "MTDVocaLiST": (13.28, (91.46, 95.74, 97.99, 98.95, 99.46, 99.68)),
}


def print_table(rows: dict[str, tuple[float, dict[str, float]]], *, published: bool):
    """Prints accuracies in % by context.

    Args:
      rows: {name: (parameters in millions, accuracy by context as from `evaluate`)}.
      published: put the published LRS2 rows above them.
    """
    contexts = next(iter(rows.values()))[1].keys()
    title = "Accuracy (%) by context K in frames"
    table = Table("", "params", *(f"K{k}" for k in contexts), title=title)
    if published:
        for name, (millions, percent) in PUBLISHED_LRS2.items():
            table.add_row(
                f"{name} (published, LRS2)", f"{millions:g} M", *(f"{p:g}" for p in percent), style="dim"
            )
        table.add_section()
    for name, (millions, accuracy) in rows.items():
        table.add_row(name, f"{millions:.2f} M", *(f"{100 * accuracy[k]:.2f}" for k in contexts))
    Console(width=100).print(table)
