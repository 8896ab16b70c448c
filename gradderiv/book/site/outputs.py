"""What a cell of a chapter prints and displays, as the outputs of a notebook."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

from nbformat.v4 import new_output

from gradderiv.book.chain import Chain
from gradderiv.book.exercises.claims import Claim
from gradderiv.book.html import chain_html, claim_html, named_html
from gradderiv.book.named import Named
from gradderiv.book.written import SHOW

HTML: dict[type, Callable[[Any], str]] = {Chain: chain_html, Claim: claim_html, Named: named_html}


class Outputs:
    """What was printed and displayed, in order.

    Attributes:
        all: the outputs.
        alternatives: words for the pictures among them.
    """

    def __init__(self) -> None:
        self.all: list[Any] = []
        self.alternatives: list[str] = []
        self._printed = io.StringIO()

    @property
    def metadata(self) -> dict[str, Any]:
        """What the site asks of a cell with pictures."""
        said = "; ".join(self.alternatives)
        return {"mystnb": {"image": {"alt": said}}} if said else {}

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Printing and ``display`` end up here."""
        token = SHOW.set(self._show)
        try:
            with contextlib.redirect_stdout(self._printed):
                yield
        finally:
            SHOW.reset(token)
            self._flush()

    def _show(self, thing: Any) -> None:
        data = bundle(thing)
        if not data:
            print(thing)
            return
        self._flush()
        self.all.append(new_output("display_data", data=data))
        if "image/svg+xml" in data:
            self.alternatives.append(thing.alt)

    def _flush(self) -> None:
        if text := self._printed.getvalue():
            self.all.append(new_output("stream", name="stdout", text=text))
            self._printed.seek(0)
            self._printed.truncate()


def bundle(thing: Any) -> dict[str, str]:
    """The thing by kind of content, as Jupyter's protocol has it; empty for what is only text."""
    if hasattr(thing, "_repr_mimebundle_"):
        return dict(thing._repr_mimebundle_())
    if type(thing) in HTML:
        html = HTML[type(thing)](thing)
        return {"text/html": html, "text/latex": thing._repr_latex_(), "text/plain": str(thing)}
    return {}
