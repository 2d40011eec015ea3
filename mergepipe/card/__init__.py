"""What is told of a result to those who did not make it: the model card, and licences."""

from mergepipe.card.card import Card, is_ours, make_card
from mergepipe.card.citing import Citation, bibtex, citations
from mergepipe.card.licences import conflicts, kind_of, licence_id
from mergepipe.card.reading import said_of

__all__ = [
    "Card",
    "Citation",
    "bibtex",
    "citations",
    "conflicts",
    "is_ours",
    "kind_of",
    "licence_id",
    "make_card",
    "said_of",
]
