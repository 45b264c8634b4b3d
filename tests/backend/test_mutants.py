"""The faults of tools/mutants.py fit the code: running them takes half an hour, this does not."""

import mutants
import pytest


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_its_text_stands_once_in_its_file(mutant):
    assert (mutants.ROOT / mutant.file).read_text().count(mutant.text) == 1
    assert mutant.text != mutant.fault
    assert (mutants.ROOT / mutant.tests.split()[0]).exists()


def test_names_are_distinct():
    names = [mutant.name for mutant in mutants.MUTANTS]
    assert len(set(names)) == len(names)
