"""Merge language models: a recipe in, a checkpoint that loads anywhere out."""
