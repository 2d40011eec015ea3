"""Transplant methods, one file each; `mergepipe.transplant` says what one is."""
