"""The operator schemas of ``clsd_fast``, each written once.

Every operator is a pair ``<op>`` / ``<op>_backward``. The native CPU library implements them for
its device, and ``reference`` in plain PyTorch for every other one; on CUDA devices the kernel is
chosen for each call (``backend``). Public functions with checks, autocast and reductions are in
``clsd_fast.ops``.

Shapes: x [N, C, H, W], weight [K, C, 3, 3], rows [B, N, D] and [B, M, D].
Gradients that were not asked for come back as empty tensors. Statistics that are saved for the
backward of a loss are in the accumulator's dtype: float32 for 16-bit rows, else the rows' own. They
are two distances [B, N], and for ``info_nce`` [3, B, N]: maximum, sum_exp and spread.

``conv3x3`` with relu multiplies negative results by negative_slope or, where given, those of each
channel by slopes [K], of a parameter's dtype. It has a gradient where the output's sign tells that
of the result before: without slopes, for a negative_slope >= 0.

``conv3x3s`` convolves several images of one shape, each by parameters of its own, and adds one
residual to all; a list of biases that there are not is empty. Its backward sums the residual's
gradient up.

``residual_blocks`` takes one chain, or several of one shape: its lists have block by block what all
chains have of it. It returns the maps after the blocks of ``kept``, ascending numbers from 1, the
last of which is the number of blocks of a chain, and with save_hidden the hidden maps of all. Its
backward takes the gradients of the maps after blocks ``at``, likewise, and the maps between all
blocks.

``info_nce`` without negative_keys takes [B, P, D] positive_key with P >= N: row i's positive is key
i, all others are its negatives. mask is [B, N, number of negatives' keys], labels is [B, P]. It
returns the loss and a list: its statistics, or with save_gradients what its backward would for a
gradient of 1, which is the gradients of query, positive_key, and those given of negative_keys and
learned_temperature.

``upsample_tail`` takes parameters in the accumulator's dtype, the second pair for upscale factor 4
alone. It returns the output and the composed weight (``reference/tail.py``), which its backward
takes. ``upsample_tails`` is the same for several tails of images of one shape; lists of parameters
that there are not are empty. shift_weight [K, K, 1, 1] and shift_bias [K], of the parameters' dtype
and contiguous, are those of a 1x1 convolution of the outputs, which have that dtype then; neither
gets a gradient.

``l1_losses`` returns the mean absolute error of the first image, and the mean of the others', which
is undefined if there are none. target gets no gradient.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from ._torch import (
    below_autograd,
    is_batched_by_autograd,
    is_below_transforms,
    is_transformed,
)

NAMESPACE = "clsd_fast"

SCHEMAS = {
    "conv3x3": "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, float res_scale, "
    "bool relu, float negative_slope=0., Tensor? slopes=None) -> Tensor",
    "conv3x3_backward": "(Tensor grad_output, Tensor x, Tensor weight, float res_scale, "
    "bool needs_x, bool needs_weight, bool needs_bias) -> (Tensor, Tensor, Tensor)",
    "conv3x3s": "(Tensor[] xs, Tensor[] weights, Tensor[] biases, Tensor? residual) -> Tensor[]",
    "conv3x3s_backward": "(Tensor[] grad_outputs, Tensor[] xs, Tensor[] weights, bool needs_x, "
    "bool needs_params, bool needs_residual) -> (Tensor[], Tensor[], Tensor[], Tensor)",
    "residual_block": "(Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, "
    "float res_scale, bool save_hidden) -> (Tensor, Tensor)",
    "residual_block_backward": "(Tensor grad_output, Tensor x, Tensor hidden, Tensor weight1, "
    "Tensor weight2, float res_scale, bool needs_x, bool needs_params) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "residual_blocks": "(Tensor[] xs, Tensor[] weights1, Tensor[] biases1, Tensor[] weights2, "
    "Tensor[] biases2, float res_scale, int[] kept, bool save_hidden) -> (Tensor[], Tensor[])",
    "residual_blocks_backward": "(Tensor[] grad_maps, int[] at, Tensor[] xs, Tensor[] maps, "
    "Tensor[] hiddens, Tensor[] weights1, Tensor[] weights2, float res_scale, bool needs_x, "
    "bool needs_params) -> (Tensor[], Tensor[], Tensor[], Tensor[], Tensor[])",
    "pixel_shuffle_upsample": "(Tensor x, Tensor weight, Tensor? bias, int upscale_factor) "
    "-> Tensor",
    "pixel_shuffle_upsample_backward": "(Tensor grad_output, Tensor x, Tensor weight, "
    "int upscale_factor, bool needs_x, bool needs_weight, bool needs_bias) "
    "-> (Tensor, Tensor, Tensor)",
    "upsample_tail": "(Tensor x, Tensor up_weight1, Tensor? up_bias1, Tensor? up_weight2, "
    "Tensor? up_bias2, Tensor out_weight, Tensor? out_bias, int upscale_factor) "
    "-> (Tensor, Tensor)",
    "upsample_tail_backward": "(Tensor grad_output, Tensor x, Tensor composed, Tensor up_weight1, "
    "Tensor? up_bias1, Tensor? up_weight2, Tensor? up_bias2, Tensor out_weight, "
    "int upscale_factor, bool needs_x, bool needs_params) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "upsample_tails": "(Tensor[] xs, Tensor[] up_weights1, Tensor[] up_biases1, "
    "Tensor[] up_weights2, Tensor[] up_biases2, Tensor[] out_weights, Tensor[] out_biases, "
    "Tensor? shift_weight, Tensor? shift_bias, "
    "int upscale_factor) -> (Tensor[], Tensor[])",
    "upsample_tails_backward": "(Tensor[] grad_outputs, Tensor[] xs, Tensor[] composed, "
    "Tensor[] up_weights1, Tensor[] up_biases1, Tensor[] up_weights2, Tensor[] up_biases2, "
    "Tensor[] out_weights, Tensor? shift_weight, int upscale_factor, bool needs_x, "
    "bool needs_params) "
    "-> (Tensor[], Tensor[], Tensor[], Tensor[], Tensor[], Tensor[], Tensor[])",
    "l1_losses": "(Tensor target, Tensor[] images, float value_range) -> (Tensor, Tensor)",
    "l1_losses_backward": "(Tensor? grad_first, Tensor? grad_others, Tensor target, "
    "Tensor[] images, float value_range) -> Tensor[]",
    "pairwise_similarity": "(Tensor query, Tensor key, str metric) -> Tensor",
    "pairwise_similarity_backward": "(Tensor grad_output, Tensor query, Tensor key, str metric) "
    "-> (Tensor, Tensor)",
    "info_nce": "(Tensor query, Tensor positive_key, Tensor? negative_keys, Tensor? mask, "
    "Tensor? labels, Tensor? learned_temperature, float temperature, str reduction, "
    "bool save_gradients) -> (Tensor, Tensor[])",
    "info_nce_backward": "(Tensor grad_loss, Tensor statistics, Tensor query, "
    "Tensor positive_key, Tensor? negative_keys, Tensor? mask, Tensor? labels, "
    "Tensor? learned_temperature, float temperature, str reduction) -> Tensor[]",
    "distance_ratio_loss": "(Tensor anchor, Tensor positive, Tensor? negatives, float eps) "
    "-> (Tensor, Tensor, Tensor)",
    "distance_ratio_loss_backward": "(Tensor grad_loss, Tensor positive_distance, "
    "Tensor negative_distance, Tensor anchor, Tensor positive, Tensor? negatives, float eps) "
    "-> (Tensor, Tensor, Tensor)",
}

#: The operators in plain PyTorch, by name.
references: dict[str, Callable] = {}


class _Library(torch.library.Library):
    """With operators that transforms of torch.func and forward-mode differentiation see as plain
    PyTorch, as they come to them from exported programs and callers of ``torch.ops``."""

    def impl(self, op_name: str, fn: Callable, dispatch_key: str = "", **options: Any) -> None:
        if dispatch_key == "Autograd":
            fn = partial(_differentiate, fn, references[op_name])
        super().impl(op_name, fn, dispatch_key, **options)


def _differentiate(kernel: Callable, reference: Callable, keyset: Any, *args: Any) -> Any:
    return reference(*args) if is_below_transforms() else kernel(keyset, *args)


_library = _Library(NAMESPACE, "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))


def register(
    name: str,
    *,
    reference: Callable,
    fake: Callable,
    backward: Callable | None = None,
    setup_context: Callable | None = None,
) -> Callable:
    """Register the device-independent parts of one operator; return what eager code calls.

    An operator without ``backward`` is itself a backward: differentiating it raises, because
    PyTorch would otherwise only warn and return a wrong number.

    The returned function is the operator with the same gradient, less the layers that
    ``torch.library`` puts around it: they take 20 us a call, as long as a small loss. Compilers
    still see the operator itself; function transforms see plain PyTorch.
    """
    qualified = f"{NAMESPACE}::{name}"
    references[name] = reference
    _library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_library)
    _library.impl(name, reference, "FuncTorchBatched")
    operator = getattr(torch.ops.clsd_fast, name).default
    if backward is None:
        refuse = _refuse_double_backward(name.removesuffix("_backward"))
        torch.library.register_autograd(qualified, refuse, lib=_library)
        differentiable = operator
    else:
        assert setup_context is not None
        torch.library.register_autograd(
            qualified, backward, setup_context=setup_context, lib=_library
        )
        differentiable = operator
        # An autograd.Function sees no tensors in lists, which ``torch.library`` takes apart.
        if not _takes_lists(name):
            function = _function(name, operator, backward, setup_context)
            # Function.apply but for its look at function transforms, which `_call` has made.
            # PyTorch does not declare it where it is defined.
            differentiable = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    call = partial(_call, operator, differentiable, reference)
    if backward is None and "Tensor[]" in SCHEMAS[name]:
        return partial(_call_one_by_one, name.removesuffix("_backward"), call)
    return call


def _takes_lists(name: str) -> bool:
    arguments, _ = SCHEMAS[name].split("->")
    return "Tensor[]" in arguments


def _function(
    name: str, operator: Callable, backward: Callable, setup_context: Callable
) -> type[torch.autograd.Function]:
    def forward(ctx: Any, *args: Any) -> Any:
        with below_autograd():
            output = operator(*args)
        setup_context(ctx, args, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(f"{NAMESPACE}_{name}", (torch.autograd.Function,), methods)


def _call(
    operator: Callable, differentiable: Callable, reference: Callable, *args: object
) -> Tensor | tuple:
    if is_transformed():  # as vmap may be over the backward of what was recorded before
        return reference(*args)
    if torch.compiler.is_compiling():
        return operator(*args)
    if torch.is_grad_enabled():
        return differentiable(*args)
    with below_autograd():
        return operator(*args)


def _call_one_by_one(op: str, call: Callable, grad: Tensor | list[Tensor], *args: object) -> Any:
    """A backward with lists of tensors, which autograd's vmap cannot call for each gradient."""
    first = grad[0] if isinstance(grad, list) else grad
    if not torch.compiler.is_compiling() and is_batched_by_autograd(first):
        raise RuntimeError(
            f"{op}: expected one gradient at a time, got is_grads_batched=True; torch.func.vmap "
            'and clsd_fast.use_backend("reference") take batches'
        )
    return call(grad, *args)


def _refuse_double_backward(op: str) -> Callable:
    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(
            f"{op}: expected a first-order gradient, got a double backward; "
            'clsd_fast.use_backend("reference") differentiates to any order'
        )

    return backward
