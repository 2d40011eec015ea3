"""Shared by all tests; that it is here puts this folder on the path of tests in subfolders."""

import torch

# Tests run in several processes; torch's own threads would only get in each other's way.
torch.set_num_threads(1)
