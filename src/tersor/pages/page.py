"""The page on artefacts: one Card, or several beside each other."""

from __future__ import annotations

from collections.abc import Sequence

from tersor.core.card import Card
from tersor.core.errors import SchemeError
from tersor.core.quantities import size
from tersor.pages.comparison import comparison, labels_of
from tersor.pages.document import document, header, main
from tersor.pages.markup import Markup, join, tag
from tersor.pages.sections import Place, key_figures, sections, verdict

__all__ = ["report_page"]

NAMES = {
    "size": "Size",
    "quality": "Quality",
    "layers": "Layers",
    "speed": "Speed",
    "formats": "Formats",
    "made": "How it was made",
    "tensors": "Every tensor",
}


def report_page(cards: Sequence[Card], *, labels: Sequence[str] = ()) -> str:
    """Return one Card, or several beside each other, as a whole HTML document in Unicode that any encoding can hold.

    labels  what to call each artefact in comparisons; without, the names of their formats or files

    The document asks for nothing: no font, script, picture or style from elsewhere, and its policy forbids them all.
    Raises SchemeError without any Card.
    """
    if not cards:
        raise SchemeError("a report needs at least one Card")
    if len(cards) == 1:
        return document(_title(cards[0]), _single(cards[0]))
    names = list(labels) if labels else labels_of(cards)
    return document(f"{len(cards)} artefacts compared", _several(cards, names))


def _title(card: Card) -> str:
    return f"{card.name} as {card.plan.recipe.format}"


def _single(card: Card) -> Markup:
    place = Place("", 2)
    content = sections(card, place)
    links = [(f"#{name}", text) for name, text in NAMES.items() if f'id="{name}"' in content]
    return join([header(_heading(card), _subtitle(card), links), main(verdict(card), key_figures(card), content)])


def _several(cards: Sequence[Card], names: Sequence[str]) -> Markup:
    links = [("#comparison", "Comparison")]
    articles = []
    for index, (card, name) in enumerate(zip(cards, names, strict=True), 1):
        place = Place(f"a{index}-", 3)
        links.append((f"#a{index}", name))
        articles.append(
            tag(
                "article",
                tag("h2", name, id=f"a{index}"),
                tag("p", _heading(card), ", ", _subtitle(card), class_="lead"),
                verdict(card),
                key_figures(card),
                tag("details", tag("summary", f"Everything about {name}"), sections(card, place)),
                aria_labelledby=f"a{index}",
            )
        )
    models = sorted({card.name for card in cards})
    subtitle = ("of " if len(models) == 1 else "of the models ") + ", ".join(models)
    heading = tag("span", f"{len(cards)} artefacts compared")
    return join([header(heading, subtitle, links), main(comparison(cards, names), *articles)])


def _heading(card: Card) -> Markup:
    arrow = tag("span", " → ", aria_hidden="true", class_="soft")
    return tag("span", card.name, arrow, tag("span", " as ", class_="spoken"), tag("strong", card.plan.recipe.format))


def _subtitle(card: Card) -> str:
    kind = f"{card.plan.architecture}, " if card.plan.architecture else ""
    planned = ", plan only: nothing was written" if card.dry_run else ""
    files = card.artefacts[0].name if len(card.artefacts) == 1 else f"{len(card.artefacts)} files"
    return f"{kind}{files}, {size(card.nbytes)}{planned}"
