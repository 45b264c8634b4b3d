import itertools

import pytest

from support.grids import cases, cover, defer, pairs


@pytest.mark.parametrize("sizes", [(3,), (2, 5), (2, 2, 2), (4, 3, 5), (2, 6, 7, 3, 2)], ids=str)
def test_pairs_hold_every_pair_and_first_every_value(sizes):
    values = {f"parameter {i}": [f"{i}.{j}" for j in range(n)] for i, n in enumerate(sizes)}
    combinations, first = pairs(**values)
    assert len(set(combinations)) == len(combinations)
    for a, b in itertools.combinations(range(len(sizes)), 2):
        expected = set(itertools.product(*list(values.values())[a : b + 1 : b - a]))
        assert {(row[a], row[b]) for row in combinations} == expected
    for a, column in enumerate(values.values()):
        assert {row[a] for row in combinations[:first]} == set(column)
    assert first == max(sizes)
    assert pairs(**values) == (combinations, first)


def test_pairs_are_fewer_than_the_product():
    assert len(pairs(a="abcd", b="abc", c="abcde")[0]) == 20
    assert len(pairs(a=range(6), b=range(7), c=range(3), d=range(2), e=range(2))[0]) <= 44


def thorough(mark):
    return [bool(parameter.marks) for parameter in mark.args[1]]


def test_cover_leaves_all_but_the_first_to_thorough_runs():
    names, parameters = (mark := cover(a=[1, 2, 3], b=[len, str])).args
    assert names == ["a", "b"]
    assert [parameter.id for parameter in parameters[:2]] == ["1-len", "2-str"]
    assert thorough(mark) == [False] * 3 + [True] * 3
    assert thorough(cover(quick=1, a=[1, 2, 3])) == [False, True, True]


def test_cases_are_every_combination():
    def check(a, b):
        return a, b

    parameters = cases(check, a=[1, 2], b=[3])
    assert [parameter.id for parameter in parameters] == ["check 1 3", "check 2 3"]
    assert [parameter.values[0]() for parameter in parameters] == [(1, 3), (2, 3)]


def test_defer_leaves_what_fits_to_thorough_runs():
    def check(a):
        return a

    parameters = defer(cases(check, a=[1, 12, 3]), "check 1*")
    assert [(p.id, bool(p.marks)) for p in parameters] == [
        ("check 1", True),
        ("check 12", True),
        ("check 3", False),
    ]
    assert parameters[0].values[0]() == 1
    with pytest.raises(AssertionError, match="expected an id like 'check 4'"):
        defer(parameters, "check 4")
