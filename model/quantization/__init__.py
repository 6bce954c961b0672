"""Packed weights: what the formats are and what they mean."""
