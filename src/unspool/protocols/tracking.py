"""Semi-supervised video object segmentation: label maps and truth in, named scores out."""
