"""`mergepipe schema`: the JSON Schema of recipes."""

from __future__ import annotations

__all__ = ["schema"]


def schema() -> None:
    """Print the JSON Schema of recipes, for editors that complete and check YAML."""
    import json

    from mergepipe.recipe import json_schema

    print(json.dumps(json_schema(), indent=2))  # noqa: T201
