"""A checkpoint made public: which files go, where they go, and what is there already."""

from mergepipe.publish.choosing import pack
from mergepipe.publish.item import Item, Parcel, check_unchanged, digest_of_item
from mergepipe.publish.sending import Published, look, send
from mergepipe.publish.target import Options, Place, State, Target, open_target, target_names

__all__ = [
    "Item",
    "Options",
    "Parcel",
    "Place",
    "Published",
    "State",
    "Target",
    "check_unchanged",
    "digest_of_item",
    "look",
    "open_target",
    "pack",
    "send",
    "target_names",
]
