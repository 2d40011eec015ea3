"""Charts: numbers in, SVG out, one file a kind. Each has a title, texts beside its colours."""
