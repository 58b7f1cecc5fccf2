"""Pure operators: tensors in, tensors out."""
