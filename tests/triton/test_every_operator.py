"""What holds for every operator, of those on rows with Triton kernels, in Triton's interpreter."""

import pytest
import torch
from support import distance_ratio_loss
from support.calls import BACKWARDS, FORWARDS, ROWS
from support.every_operator import (
    check_against_the_reference,
    compiles_as_one_graph,
    double_backward_raises,
    no_uninitialised_memory_is_read,
    offsets_beyond_32_bits,
    one_input_alone_gets_its_gradient,
    operator_ids,
)
from support.grids import cases, defer
from support.nonfinite import FUNCTIONS, go_where_the_reference_sends_them
from support.util import rand

import clsd_fast
from clsd_fast.backend import triton as triton_backend

pytestmark = pytest.mark.usefixtures("interpreted_triton")
PROPERTIES = [
    *cases(no_uninitialised_memory_is_read, name=ROWS, dtype=[torch.float32]),
    *cases(one_input_alone_gets_its_gradient, name=ROWS),
    *cases(double_backward_raises, name=ROWS),
    *cases(offsets_beyond_32_bits, name=ROWS),
    *cases(go_where_the_reference_sends_them, name=FUNCTIONS, dtype=[torch.float32]),
    *cases(compiles_as_one_graph, name=ROWS, compiler=["aot_eager"]),
]
ROW_OPERATORS = {*triton_backend.OPERATORS} - {*triton_backend.CONVOLUTIONS, "upsample_tail"}
CALLS = [
    (op, values)
    for op, values in FORWARDS + BACKWARDS
    if op.removesuffix("_backward") in ROW_OPERATORS
    and values[-1] is not True  # save_gradients, which the CPU's kernel alone has
]


#: What other calls of the same kernels show, too; each takes seconds.
OTHERS = (
    "one_input_alone_gets_its_gradient info_nce",
    "one_input_alone_gets_its_gradient info_nce [el]*",
    "one_input_alone_gets_its_gradient distance_ratio_loss",
    "go_where_the_reference_sends_them info_nce none nothing ?*",
    "go_where_the_reference_sends_them info_nce none mask 3 *",
    "go_where_the_reference_sends_them info_nce mean [ml]*",
    "go_where_the_reference_sends_them info_nce mean nothing 2 *",
    "go_where_the_reference_sends_them pairwise_similarity dot *",
    "go_where_the_reference_sends_them distance_ratio_loss 2 *",
    "compiles_as_one_graph info_nce aot_eager",
    "compiles_as_one_graph info_nce [en]*",
    "compiles_as_one_graph distance_ratio_loss aot_eager",
    "compiles_as_one_graph pairwise_similarity [cd]*",
)


@pytest.mark.parametrize("holds", defer(PROPERTIES, *OTHERS))
def test_properties(holds):
    holds()


@pytest.mark.parametrize("op, values", CALLS, ids=operator_ids(CALLS))
def test_operators_equal_the_reference(op, values):
    check_against_the_reference(op, values)


def test_launches(launches):
    query, key = (t.float().requires_grad_() for t in (rand(3, 17, 8), rand(3, 9, 8)))
    for metric, kernel in (("cosine", "similarity"), ("dot", "similarity"), ("l1", "l1")):
        clsd_fast.pairwise_similarity(query, key, metric).sum().backward()
        assert launches == [f"pairwise_{kernel}_{k}_kernel" for k in ("forward", "grad", "grad")]
        launches.clear()
    for negatives in (None, 4):
        tensors = [
            t.float().requires_grad_()
            for t in distance_ratio_loss.rows((3,), 5, 2000, negatives)
            if t is not None
        ]
        loss = clsd_fast.distance_ratio_loss(*tensors)
        assert [name.split("_")[3] for name in launches] == ["forward", "finish"]
        loss.backward()
        assert [name.split("_")[3] for name in launches[2:]] == ["anchor", "others"]
        launches.clear()
