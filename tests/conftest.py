"""One thread a test process: two that each take every core spend their time waiting for each other."""

import torch

torch.set_num_threads(1)
