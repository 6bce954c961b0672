"""A server that is wrong in one detail breaks the relation that is named beside it, so the relations prove the detail.

Each fault is planted at the seam where such a fault would lie, and the very test of `test_relations.py` is run on it,
with goldens that the faulty server has made itself.
"""
