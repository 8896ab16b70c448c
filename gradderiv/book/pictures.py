"""Pictures of matrices, drawn when somebody looks: matplotlib is imported only then, and a terminal prints the words instead.

display(heat({"P": P, "dS": dS}, alt="P and dS of one head; a hidden entry is 0 in both"))
"""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradderiv.book.layout import wrap
from gradderiv.errors import InputError, message

WIDEST = 9.0  # inches
INK = "#808488"  # reads on a light and on a dark page


class Picture:
    """A drawing with words for those who do not see it.

    Attributes:
        alt: what one sees, in a sentence.
    """

    def __init__(self, draw: Callable[[Any], None], alt: str) -> None:
        if not alt.strip():
            cause, do = "it was left for later", "say in a sentence what one sees"
            raise InputError(message("a picture needs words, alt=…", repr(alt), cause, do))
        self._draw, self.alt = draw, alt

    def figure(self) -> Any:
        """The matplotlib figure.

        Raises:
            InputError: matplotlib is not installed.
        """
        figure = _matplotlib().figure.Figure(layout="constrained")
        self._draw(figure)
        return figure

    def svg(self) -> str:
        """The drawing as SVG, with transparent ground and with ``alt`` as its title."""
        out = io.StringIO()
        style = {
            "svg.fonttype": "path",
            "svg.hashsalt": "gradderiv",
            "font.size": 11,
            "mathtext.fontset": "stix",
        }
        colours = dict.fromkeys(
            ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
        )
        with _matplotlib().rc_context({**style, **colours}):
            self.figure().savefig(
                out, format="svg", transparent=True, metadata={"Date": None, "Title": self.alt}
            )
        return out.getvalue()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"image/svg+xml": self.svg(), "text/plain": str(self)}

    def __str__(self) -> str:
        return "\n".join(wrap(f"[picture: {self.alt}]", 80))


def _matplotlib() -> Any:
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError:
        asked, cause = "a picture is drawn by matplotlib", "the extra was left out"
        raise InputError(
            message(asked, "it is not installed", cause, "pip install 'gradderiv[plot]'")
        ) from None
    return importlib.import_module("matplotlib")


def picture(draw: Callable[[Any], None], *, alt: str) -> Picture:
    """Whatever ``draw(figure)`` draws on a matplotlib figure."""
    return Picture(draw, alt)


def heat(
    matrices: Mapping[str, Tensor],
    *,
    alt: str,
    rows: str = "",
    columns: str = "",
    cuts: int = 0,
    values: bool = True,
) -> Picture:
    """Matrices side by side as heat maps: blue below 0, red above, white 0; each on its own scale, which is symmetric.

    Args:
        matrices: by their names, which are LaTeX without the dollar signs (``"dS"``, ``r"\\mathcal{V}"``).
        rows, columns: what the axes are, as ``"query"``.
        cuts: a line after every so many columns (and rows, where the matrix is in blocks both ways), as between heads.
        values: write the number into each entry, where there are at most 200.
    """
    for name, x in matrices.items():
        if x.dim() != 2:
            cause, do = "a batch, or a row", "pass one matrix of it, as P[0]"
            raise InputError(
                message(f"a heat map of {name} needs a matrix", f"shape {tuple(x.shape)}", cause, do)
            )

    def draw(figure: Any) -> None:
        widths = [max(x.shape[1], 3) for x in matrices.values()]
        height = max(x.shape[0] for x in matrices.values())
        _size(figure, 0.48 * sum(widths) + 1.2 * len(widths), max(0.38 * height + 0.9, 1.6))
        axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
        for axis, (name, x) in zip(axes, matrices.items(), strict=True):
            _heat(axis, x.detach().double(), cuts, values)
            axis.set_title(f"${name}$", fontsize=12)
            axis.set_xlabel(columns)
        axes[0].set_ylabel(rows)

    return Picture(draw, alt)


def _size(figure: Any, width: float, height: float) -> None:
    """The size in inches, made smaller as a whole where it is wider than a page."""
    shrunk = min(1.0, WIDEST / width)
    figure.set_size_inches(width * shrunk, max(height * shrunk, 1.4))


def _heat(axis: Any, x: Tensor, cuts: int, values: bool) -> None:
    size = float(x[torch.isfinite(x)].abs().max()) if bool(torch.isfinite(x).any()) else 1.0
    axis.imshow(x.numpy(), cmap="RdBu_r", vmin=-(size or 1), vmax=size or 1)
    axis.set_xticks([])
    axis.set_yticks([])
    for k in range(cuts, x.shape[1], cuts) if cuts else ():
        axis.axvline(k - 0.5, color=INK, linewidth=1.5)
    if not values or x.numel() > 200:
        return
    for (i, j), value in zip(
        torch.cartesian_prod(*map(torch.arange, x.shape)).tolist(), x.flatten().tolist(), strict=True
    ):
        colour = "white" if abs(value) > 0.6 * size else "#202020"
        axis.text(j, i, _short(value), ha="center", va="center", fontsize=8, color=colour)


def _short(value: float) -> str:
    """A number in four characters or so."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "nan")
    if value == round(value):
        return f"{value + 0.0:.0f}".replace("-", "−")
    return f"{value:.2f}".replace("0.", ".", 1).replace("-", "−") if abs(value) < 10 else f"{value:.2g}"


def pattern(matrices: Mapping[str, Tensor], *, alt: str, height: int = 0, width: int = 0) -> Picture:
    """Which entries are not 0: the block structure of matrices, side by side.

    Args:
        height, width: a line after every so many rows and columns of the first; of all others in proportion.
    """

    def draw(figure: Any) -> None:
        widths = [max(x.shape[1], 3) for x in matrices.values()]
        tall = max(x.shape[0] for x in matrices.values())
        _size(figure, 0.22 * sum(widths) + 0.9 * len(widths), max(0.22 * tall + 0.7, 1.4))
        axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
        first = next(iter(matrices.values()))
        for axis, (name, x) in zip(axes, matrices.items(), strict=True):
            axis.imshow((x != 0).double().numpy(), cmap="Blues", vmin=0, vmax=1.6)
            axis.set_title(f"${name}$", fontsize=12)
            axis.set_xlabel(f"${x.shape[0]} \\times {x.shape[1]}$", fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
            for k in range(1, first.shape[0] // height if height else 0):
                axis.axhline(k * height * x.shape[0] / first.shape[0] - 0.5, color=INK, linewidth=1)
            for k in range(1, first.shape[1] // width if width else 0):
                axis.axvline(k * width * x.shape[1] / first.shape[1] - 0.5, color=INK, linewidth=1)

    return Picture(draw, alt)
