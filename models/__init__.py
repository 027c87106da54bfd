"""Networks, losses and camera geometry: tensors in, tensors out. Knows no dataset."""
