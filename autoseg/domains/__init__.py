"""Domain generalization: views of a batch that make a network survive another scanner, sequence or modality."""
