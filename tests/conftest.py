"""Shared by all tests; that it is here puts this folder on the path of tests in subfolders."""

import os

import torch

# Tables are as wide as the terminal; wide enough here that no line of one is broken.
os.environ["COLUMNS"] = "200"
# Tests run in several processes; torch's own threads would only get in each other's way.
torch.set_num_threads(1)
