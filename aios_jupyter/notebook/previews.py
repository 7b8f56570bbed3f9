"""A live look at what an augmentation policy does: another policy, other draws, before data is made.

A leaf module, as `widgets.py` is.
"""

from __future__ import annotations

from collections.abc import Callable

from ..commands.data import policy_card
from ..commands.views import Card
from ..errors import AiosError
from . import html
from .widgets import Live, Slot, fill, pane, push_button, row_of, text_field

Draw = Callable[[str, int], bytes]


class PreviewCard(Live):
    """Originals and augmented copies of them, for a policy that can be changed.

    Parameters
    ----------
    draw
        Makes the picture, as a PNG, of a policy and a seed.
    """

    def __init__(self, slot: Slot, source: str, policy: str, seed: int, draw: Draw) -> None:
        super().__init__(slot)
        self._source, self._draw = source, draw
        self._seed = seed
        self._policy = policy
        self._picture = draw(policy, seed)
        self._note = ""
        self._body = pane()
        self._field = text_field(policy, lambda text: self._try(text, self._seed))
        self._more = push_button("Another draw", "refresh", self._again)
        self._show()
        self.open([self._body, row_of(self._field, self._more)])

    def text(self) -> str:
        """The policy, as lines."""
        return self._card().text()

    def markup(self) -> str:
        """The policy and its picture, as a card."""
        return html.page(html.framed(html.card(self._card())))

    def _card(self) -> Card:
        return policy_card(self._source, self._policy, self._seed, self._picture)

    def _show(self) -> None:
        note = html.note(self._note) if self._note else ""
        fill(self._body, html.part(html.card(self._card()), note))

    def _again(self) -> None:
        self._try(self._policy, self._seed + 1)

    def _try(self, policy: str, seed: int) -> None:
        """Draw it; what cannot be drawn is said, and the picture stays."""
        try:
            self._picture = self._draw(policy, seed)
            self._policy, self._seed, self._note = policy, seed, ""
        except AiosError as error:
            # Further lines point at a place, in letters that are all as wide.
            self._note = str(error).splitlines()[0]
        self._show()
