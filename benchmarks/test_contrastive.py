"""Contrastive operators; `contrastive.py` times the same cases."""

from cases import contrast

SUBJECT = contrast


def test_operator(rivals, name, compete):
    compete(rivals.contender(name))
