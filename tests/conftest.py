"""Shared by all tests; that it is here puts this folder on the path of tests in subfolders."""
