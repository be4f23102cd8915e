"""The parts of `cpu_peers.py`: which networks are compared (`cases`), the networks in PyTorch (`networks`), their check against
reference numbers (`golden`), and the process that measures one mode of PyTorch (`worker`). Only `cases` works without torch.
"""
