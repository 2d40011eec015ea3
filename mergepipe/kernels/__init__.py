"""Fused CPU loops, exact selection, counter-based random numbers.

Each has a definition in plain torch, which is also what runs on a GPU, and a numba twin that reads
tensors as their files hold them and gives the same bits.
"""
