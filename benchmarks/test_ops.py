"""Image operators and inference; `ops.py` times the same cases."""

from cases import images

SUBJECT = images


def test_operator(rivals, name, compete):
    compete(rivals.contender(name))
