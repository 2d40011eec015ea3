"""The post-steps of a merge: names and parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergepipe.errors import Problems, did_you_mean
from mergepipe.method import load_method, load_post_step, method_names, post_step_names
from mergepipe.recipe.document import Document, FieldPath
from mergepipe.recipe.fields import MergeFields
from mergepipe.recipe.settings import check_settings
from mergepipe.recipe.spec import PostStep

__all__ = ["read_post_steps"]


def read_post_steps(
    entries: Sequence[str | dict[str, dict[str, Any] | None]],
    merge: MergeFields,
    document: Document,
    path: FieldPath,
    problems: Problems,
) -> tuple[PostStep, ...]:
    """Check the entries of `then:`; what is wrong becomes problems."""
    posts = []
    for i, entry in enumerate(entries):
        place = (*path, i)
        named = {entry: None} if isinstance(entry, str) else entry
        if len(named) != 1:
            problems.add(document.where(place), "one post-step an entry", "`- lines: {beta: 0.5}`")
            continue
        name, values = next(iter(named.items()))
        if name not in post_step_names():
            problems.add(
                document.where(place),
                f"unknown post-step '{name}'{did_you_mean(name, post_step_names())}",
            )
            continue
        settings = check_settings(
            values or {},
            load_post_step(name).shared,
            name,
            (document, (*place, name)),
            problems,
        )
        posts.append(PostStep(name, settings))
    if posts and (merge.base is None or not _reads_base(merge.method)):
        problems.add(
            document.where(path),
            f"{posts[0].name} works on what a merge adds to its base, and {merge.method} has none",
            "use a method on task vectors",
        )
    return tuple(posts)


def _reads_base(method: str) -> bool:
    return method not in method_names() or load_method(method).uses_base(named=True)
