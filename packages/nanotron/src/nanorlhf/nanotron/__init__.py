"""Data, tensor and pipeline parallel training of Hugging Face decoders."""
