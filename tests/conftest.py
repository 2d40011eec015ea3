"""Shared by all tests; that it is here puts this folder on the path of tests in subfolders."""

import os
import signal

import torch

# Tables are as wide as the terminal; wide enough here that no line of one is broken.
os.environ["COLUMNS"] = "200"
# Tests run in several processes; torch's own threads would only get in each other's way.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of what tests start
# A shell starts what it runs in the background with Ctrl-C ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
