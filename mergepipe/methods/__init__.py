"""Merge methods, one file each; `mergepipe.method` says what a method is."""
