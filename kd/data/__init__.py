"""Data: archives -> tensors (readers) -> batches (dataset), streamed from disk where they do not fit
(stream); JPEG files that are decoded as they are needed (jpeg)."""

from kd.data.dataset import Batch, Data
from kd.data.readers import NAMES, load_data

__all__ = ["NAMES", "Batch", "Data", "load_data"]
