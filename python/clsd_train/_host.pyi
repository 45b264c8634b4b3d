# csrc/host/sampler.cpp. Its class is made and called like the one in NumPy.
from .sampler import NumpyBatchSampler

BatchSampler = NumpyBatchSampler
