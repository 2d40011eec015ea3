"""Loops that torch has no fast operation for: exact selection, counter-based random numbers.

Each has a definition in plain torch, which is also what runs on a GPU, and a numba twin for the
CPU that gives the same bits.
"""
