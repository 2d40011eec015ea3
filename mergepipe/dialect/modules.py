"""Parts of a model (`modules:`), which mergekit merges each in its own way.

Its definitions name a part's tensors one by one; here they are found by what their names have in
common in all versions of transformers. What no other part has is the language model's.
"""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["divided", "main_part"]

# In the order in which rules have to stand: a projector may lie inside the vision tower.
_GLOBS = {
    "multi_modal_projector": (
        "*multi_modal_projector.*",
        "*visual.merger.*",
        "*visual.deepstack_merger_list.*",
    ),
    "vision_tower": ("*vision_tower.*", "visual.*", "*.visual.*"),
    "vision_model": ("vision_model.*", "*.vision_model.*"),
    "encoder": ("encoder.*", "*.encoder.*"),
    "decoder": ("decoder.*", "*.decoder.*"),
}
_REST = ("text_decoder", "shared", "default")
_PROJECTOR, _VISION = "multi_modal_projector", ("vision_tower", "vision_model")


def main_part(names: Collection[str]) -> str:
    """Choose the part that everything belongs to which no other part's globs fit."""
    rest = [name for name in names if name in _REST]
    return rest[0] if rest else list(names)[-1]


def divided(names: Collection[str]) -> list[tuple[str | None, tuple[str, ...]]]:
    """Give the globs of parts in the order in which rules must stand, all but those of the rest.

    None stands for parts that a model with the named ones has, and that are not named.
    """
    found: list[tuple[str | None, tuple[str, ...]]] = [
        (name, (f"{name}.*", f"*.{name}.*"))
        for name in names
        if name not in _GLOBS and name not in _REST
    ]
    sees = not {"text_decoder", _PROJECTOR, *_VISION}.isdisjoint(names)
    for name, globs in _GLOBS.items():
        if name in names:
            found.append((name, globs))
        elif sees and name == _PROJECTOR:
            found.append((None, globs))
        elif sees and name == "vision_tower" and "vision_model" not in names:
            found.append((None, (*globs, *_GLOBS["vision_model"])))
    if sees and "text_decoder" not in names:
        found.append((None, ("*",)))
    return found
