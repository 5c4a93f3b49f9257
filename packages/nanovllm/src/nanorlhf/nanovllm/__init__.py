"""Paged-attention inference engine."""
