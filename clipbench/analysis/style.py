"""One colour per method, everywhere: a function of the method's name alone.

The colours are Okabe and Ito's (2008, jfly.uni-koeln.de/color), without their yellow, which is too light for
a line on white; darker ones of Paul Tol's muted scheme follow for further methods. Both stay apart for
colour-blind readers; line styles and markers tell the methods apart in black-and-white print too.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

COLOURS = {
    "black": "#000000",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "purple": "#CC79A7",
    "indigo": "#332288",
    "wine": "#882255",
    "teal": "#44AA99",
}
# For methods that are not in KNOWN, so that a new one never takes a known one's colour.
SPARE = ("#999933", "#661100", "#AA4499", "#117733", "#6699CC", "#888888")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.6)),
    (0, (1.2, 1.2)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (3, 1, 1, 1, 1, 1)),
)
MARKERS = "os^Dv<>P"
# method: colour, index into DASHES, index into MARKERS
KNOWN = {
    "sgd": ("black", 0, 0),
    "norm_clip": ("blue", 1, 1),
    "ps_clip": ("vermillion", 0, 2),
    "micro_batch_clip": ("green", 3, 3),
    "value_clip": ("sky", 2, 4),
    "ps_clip_constant": ("orange", 1, 5),
    "spectral_clip": ("purple", 0, 6),
    "spectral_clip_ema": ("indigo", 3, 7),
    "spectral_clip_quantile": ("wine", 1, 0),
    "soft_spectral_clip": ("teal", 2, 1),
}
# What stands in figures of studies only, never beside methods of another study: estimators, descents, kinds of outlier.
IN_STUDIES = {
    "mean": ("black", 0, 0),
    "batch_clip": ("blue", 1, 1),
    "constant_clip": ("orange", 1, 5),
    "ps_clip_theory": ("wine", 3, 3),
    "coordinate_median": ("green", 3, 3),
    "median_of_means": ("teal", 2, 4),
    "mini_batch": ("sky", 1, 4),
    "normalised": ("green", 3, 3),
    "clean": ("black", 0, 0),
    "control": ("sky", 1, 4),
    "targets": ("vermillion", 0, 2),
    "inputs": ("blue", 1, 1),
    "loss": ("green", 3, 3),
}

RC: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.hashsalt": "clipbench",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
}


class Look(NamedTuple):
    """Colour (hex), dash pattern and marker of one line."""

    colour: str
    dash: Any
    marker: str


def look(method: str) -> Look:
    """The look of a method. An unknown one gets its look from a hash of its name: the same in every figure,
    machine and year."""
    if method in KNOWN or method in IN_STUDIES:
        colour, dash, marker = (KNOWN | IN_STUDIES)[method]
        return Look(COLOURS[colour], DASHES[dash], MARKERS[marker])
    code = zlib.crc32(method.encode())
    return Look(SPARE[code % len(SPARE)], DASHES[code // 16 % len(DASHES)], MARKERS[code // 256 % len(MARKERS)])


def looks(methods: Sequence[str]) -> list[Look]:
    """The looks of the lines of one figure, in order. The colour is always the method's; where a line's
    colour and dashes are taken already (two settings of one method, two unknown names), the next free dashes
    and marker are used."""
    taken: set[tuple[str, int]] = set()
    result = []
    for method in methods:
        own = look(method)
        first = DASHES.index(own.dash)
        shift = next((s for s in range(len(DASHES)) if (own.colour, (first + s) % len(DASHES)) not in taken), 0)
        index = (first + shift) % len(DASHES)
        taken.add((own.colour, index))
        result.append(Look(own.colour, DASHES[index], MARKERS[(MARKERS.index(own.marker) + shift) % len(MARKERS)]))
    return result
