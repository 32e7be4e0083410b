"""No network, and one thread a test process: two that each take every core spend their time waiting for each other."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the library is imported

import torch

torch.set_num_threads(1)
