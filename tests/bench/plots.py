"""Growth drawn: one figure of some panels, an SVG that reads on a light page and on a dark one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.record import RECORD

#: Seconds by number: of partitions, tables or rows.
Curve = Mapping[int, float]

# One hue a side everywhere, each of them distinct enough from white and from black.
COLOURS = {
    "alembic_partitions": "#2f81f7",
    "by hand": "#8b949e",
    "without the hook": "#8b949e",
    "pg-partsmith": "#d9822b",
    "django-postgres-extra": "#2ea06b",
    "pg_partman": "#b668d8",
}
INK = "#7d8590"


@dataclass(frozen=True)
class Panel:
    """What is counted along the bottom, and how long it takes each side."""

    title: str
    along: str
    curves: Mapping[str, Curve]
    logarithmic: bool = False


def draw(name: str, title: str, panels: Sequence[Panel]) -> None:
    """Draw the panels, two beside each other, into `name`.svg, and with BENCH_PNG=1 into a PNG to look at."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import EngFormatter

    settings = {
        "svg.fonttype": "none",  # text stays text: small, and in the reader's own font
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9,
        "axes.facecolor": "none",
        "axes.edgecolor": INK,
        "axes.titlesize": 10,
        **{f"{of}.color": INK for of in ("text", "xtick", "ytick", "grid")},
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
    }
    with mpl.rc_context(settings):
        height = 2.8 * -(-len(panels) // 2)
        figure, axes = plt.subplots(
            -(-len(panels) // 2), 2, figsize=(7.8, height + 0.4), layout="constrained"
        )
        for axis, panel in zip(axes.flat, panels, strict=False):
            for side, curve in panel.curves.items():
                axis.plot(
                    list(curve),
                    [seconds * 1000 for seconds in curve.values()],
                    marker="o",
                    markersize=3,
                    linewidth=2 if side.startswith("alembic") else 1.3,
                    label=side,
                    color=COLOURS[side.split(":")[0]],
                )
            if panel.logarithmic:
                axis.set(xscale="log", yscale="log")
                axis.minorticks_off()
            else:
                axis.set(xlim=(0, None), ylim=(0, None))
            axis.xaxis.set_major_formatter(EngFormatter(sep="") if panel.logarithmic else "{x:,g}")
            axis.yaxis.set_major_formatter("{x:,g}")
            axis.set(title=panel.title, xlabel=panel.along, ylabel="ms")
            axis.grid(alpha=0.3, linewidth=0.5)
            axis.spines[["top", "right"]].set_visible(False)
        sides = {
            name: line
            for axis in axes.flat
            for line, name in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            sides.values(), sides, loc="outside lower center", ncols=3, frameon=False, labelcolor=INK
        )
        path = RECORD.plot(f"{name}.svg", title)
        figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
        if os.environ.get("BENCH_PNG"):
            for shade in ("white", "#0d1117"):
                looked_at = Path(path.parent, f"{name}-{'light' if shade == 'white' else 'dark'}.png")
                figure.savefig(looked_at, facecolor=shade, dpi=110)
        plt.close(figure)
