"""Plants faults into the kernels, one at a time, and expects that the tests catch each.

    python tools/mutants.py [--list] [--only PART_OF_A_NAME]

A mutant is one piece of text that is replaced in one file. It is planted into a copy of this
checkout, what it belongs to is built there, and the tests that should catch it run; without any
mutant, they have to pass first. The program ends with 1 if a mutant passes its tests, if its text
does not occur exactly once, or if it does not compile: then it has to be brought up to date with
the code. Needs what the tests need; on 2 cores it takes half an hour. Run it by hand, after a
change of the kernels or where tests are left out.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
#: A shell's exit status of a program that a signal has ended is above this.
SIGNALLED = 128


class Mutant(NamedTuple):
    """One fault; ``tests`` are pytest's arguments, quick ones that should catch it."""

    name: str
    file: str
    text: str
    fault: str
    tests: str


WINOGRAD = "csrc/cpu/conv/winograd.h"
CONV = "tests/ops/test_conv3x3.py -k native"
NCE = "tests/ops/test_info_nce.py -k native"
NONFINITE = "tests/ops/test_nonfinite.py -k native"
TAIL = "tests/ops/test_upsample_tail.py -k native"
CUDA_CONV = "tests/cuda/test_conv3x3.py"
CUDA_SM90 = "tests/cuda/test_sm90.py"
CUDA_TRIO = "tests/cuda/test_trio.py"
CUDA_WGRAD = "tests/cuda/test_wgrad.py"
CUDA_TAIL = "tests/cuda/test_upsample_tail.py -k test_the_rule"
SEVERAL = f"{CUDA_CONV} -k several"
CUDA_FEW = "csrc/cuda/conv3x3_few.cuh"
CUDA_L1_TESTS = "tests/cuda/test_l1_losses.py"
CUDA_L1 = "csrc/cuda/l1_losses.cu"
CUDA_SUM = "csrc/cuda/sum.cuh"
TAIL_APPLY = "csrc/cuda/tail_apply.cuh"
TAIL_COMPOSE = "csrc/cuda/tail_compose.cuh"
TAIL_GRADIENTS = "csrc/cuda/tail_gradients.cuh"
WGRAD_SM90 = "csrc/cuda/wgrad_sm90.cuh"
TRITON_NCE = "tests/triton/test_info_nce.py"
TRITON_TAIL = "tests/triton/test_upsample_tail.py"
TRITON_CONV = "tests/triton/test_convolutions.py"
CONVOLVE = "clsd_fast/triton/conv/convolve.py"
CONV_GRADIENTS = "clsd_fast/triton/conv/gradients.py"

MUTANTS = [
    # Winograd
    Mutant(
        "winograd: a band's tiles counted by its rows",
        WINOGRAD,
        "const int64_t y = tile / bands_.columns * bands_.tile;",
        "const int64_t y = tile / bands_.rows_per_band * bands_.tile;",
        CONV,
    ),
    Mutant(
        "winograd: rows that no band has",
        "csrc/cpu/conv/winograd_bands.h",
        "rows_per_band(ceil_div(rows, bands)) {}",
        "rows_per_band(rows / bands) {}",
        CONV,
    ),
    Mutant(
        "winograd: an edge patch is not cleared on the right",
        WINOGRAD,
        "std::fill_n(target + end * channels, (size_ - end) * channels, T(0));",
        "",
        CONV,
    ),
    Mutant(
        "winograd: an edge patch is not cleared on the left",
        WINOGRAD,
        "std::fill_n(target, begin * channels, T(0));",
        "",
        CONV,
    ),
    Mutant(
        "winograd: a sign of the input's transform",
        "csrc/cpu/isa/winograd.h",
        "out[4] = even_b - odd_b;\n    out[5] = T(kA2 * kB2) * d[1]",
        "out[4] = even_b + odd_b;\n    out[5] = T(kA2 * kB2) * d[1]",
        CONV,
    ),
    Mutant(
        "winograd: a term of the weight gradient's transform",
        "csrc/cpu/isa/winograd.h",
        "out[kOut - 1] += u[5];",
        "out[kOut - 1] += u[4];",
        CONV,
    ),
    Mutant(
        "winograd gradient: a group of no bands is not cleared",
        "csrc/cpu/conv/winograd_gradient.h",
        "if (first == last) std::fill_n",
        "if (false) std::fill_n",
        CONV,
    ),
    # Epilogue
    Mutant(
        "epilogue: a column too many",
        "csrc/cpu/isa/winograd.h",
        "if (!kWhole && j >= columns) return;",
        "if (!kWhole && j > columns) return;",
        CONV,
    ),
    Mutant(
        "epilogue: a wrong row of the residual",
        "csrc/cpu/conv/convolution.h",
        "return Grid{image.pixel(n_, first_ + y, x) + image.channel[image.order[k]]",
        "return Grid{image.pixel(n_, first_, x) + image.channel[image.order[k]]",
        CONV,
    ),
    Mutant(
        "epilogue: the scale does not reach the bias",
        "csrc/cpu/isa/epilogue.h",
        "value = (value + bias_) * epilogue_.scale;",
        "value = value * epilogue_.scale + bias_;",
        CONV,
    ),
    Mutant(
        "epilogue: the code for a residual alone serves a ReLU beside it",
        "csrc/cpu/isa/epilogue.h",
        "residual + positive + epilogue.relu > 1",
        "residual + positive > 1",
        CONV,
    ),
    Mutant(
        "epilogue: a NaN does not pass the ReLU",
        "csrc/cpu/isa/epilogue.h",
        "value = value < 0 ? zero : value;",
        "value = value > 0 ? value : zero;",
        "tests/ops -k 'native and nan'",
    ),
    # Contrast
    Mutant(
        "info_nce: the largest logit so far is forgotten",
        "csrc/cpu/isa/softmax.h",
        "Vec<T> largest = before;",
        "Vec<T> largest = load(column);",
        NCE,
    ),
    Mutant(
        "info_nce: a sum is not rescaled",
        "csrc/cpu/contrast/info_nce_forward.h",
        "    sum *= kept;\n",
        "",
        NCE,
    ),
    Mutant(
        "info_nce: the positive's gradient is left out",
        "csrc/cpu/contrast/info_nce_backward.h",
        "if (own) *own -= weights[2 * round.width + q + v];",
        "(void)own;",
        NCE,
    ),
    Mutant(
        "info_nce: the second round of queries replaces the keys' gradients",
        "csrc/cpu/contrast/info_nce_backward.h",
        "add_key_sums(key_sums, round.b + entry, key, keys, round.first > 0);",
        "add_key_sums(key_sums, round.b + entry, key, keys, false);",
        NCE,
    ),
    Mutant(
        "info_nce: an excluded pair of labels is kept",
        "csrc/cpu/contrast/info_nce_tables.h",
        "logits[k * kQueryBlock + v] = -std::numeric_limits<T>::infinity();",
        "logits[k * kQueryBlock + v] = 0;",
        NCE,
    ),
    Mutant(
        "info_nce: the spread is that of the largest logit",
        "csrc/cpu/contrast/info_nce_forward.h",
        "saved.spread[row] = softmax.weighted / softmax.sum_exp - behind;",
        "saved.spread[row] = softmax.weighted / softmax.sum_exp;",
        NCE,
    ),
    # Tail
    Mutant(
        "tail: paths beyond the start are not taken off",
        "csrc/tail_axis.h",
        ".count = segment.count + first, .sign = -1});",
        ".count = segment.count + first, .sign = 0});",
        TAIL,
    ),
    Mutant(
        "tail: an edge is not mirrored",
        "csrc/tail_axis.h",
        ".after = after.mirrored(path.after + end),",
        ".after = path.after,",
        TAIL,
    ),
    Mutant(
        "tail: the biases of an edge are those of the middle",
        "csrc/cpu/tail/apply.h",
        "std::copy_n(source + tail_like(y, height) * run, run, target);",
        "std::copy_n(source + tail_like(height / 2, height) * run, run, target);",
        TAIL,
    ),
    Mutant(
        "tail: a partial of the composed weight's gradient is lost",
        "csrc/cpu/tail/compose.h",
        "for (int64_t group = 1; group < kComposeGroups; ++group) {\n"
        "        const T* partial = partials",
        "for (int64_t group = 2; group < kComposeGroups; ++group) {\n"
        "        const T* partial = partials",
        TAIL,
    ),
    Mutant(
        "tail: a tap of the 5x5 kernel is its neighbour's",
        "csrc/cpu/tail/map.h",
        "axis.upscale * (tap % kSide - 2);",
        "axis.upscale * (tap % kSide - 1);",
        TAIL,
    ),
    Mutant(
        "tail: the gradient's 5x5 kernel is not turned around",
        "csrc/cpu/tail/map.h",
        "index(k, c, kTaps - 1 - tap)",
        "index(k, c, tap)",
        TAIL,
    ),
    Mutant(
        "tail: what the edges add is lost below Winograd's",
        "csrc/cpu/tail/apply.h",
        ".add = every && !footprint.rows.every,",
        ".add = every && !footprint.rows.every && !shape_.convolved,",
        TAIL,
    ),
    Mutant(
        "winograd: the last tap of a 5x5 kernel has no fourth power",
        "csrc/cpu/isa/winograd.h",
        "even_a += T(kA4) * g[4]",
        "even_a += T(kA2) * g[4]",
        TAIL,
    ),
    # CUDA, emulated
    Mutant(
        "cuda: the halo begins a pixel late",
        "csrc/cuda/operands.cuh",
        "const int y = place.y - kBorder + row,",
        "const int y = place.y - kBorder + 1 + row,",
        CUDA_CONV,
    ),
    Mutant(
        "cuda: pixels right of the image are read",
        "csrc/cuda/operands.cuh",
        "is_inside(x_k, width);",
        "x_k >= 0;",
        CUDA_CONV,
    ),
    Mutant(
        "cuda: a pixel over the end of a row is taken from the same row",
        "csrc/cuda/operands.cuh",
        "wraps ? rows + 1 : rows",
        "rows",
        CUDA_CONV,
    ),
    Mutant(
        "cuda: phases of a shuffled row are taken as the next row",
        "csrc/cuda/operands.cuh",
        "row_skip_ = steps.phase_row - steps.column;",
        "row_skip_ = 0;",
        "tests/cuda/test_pixel_shuffle_upsample.py",
    ),
    Mutant(
        "cuda: a gradient's taps are not turned",
        "csrc/cuda/tensors.h",
        "packing.weight_start = 2 * (weight.stride(2) + weight.stride(3));",
        "packing.y_stride = weight.stride(2), packing.x_stride = weight.stride(3);",
        CUDA_CONV,
    ),
    Mutant(
        "cuda: rows beyond a group's channels are packed",
        "csrc/cuda/packing.cuh",
        "return channel < per_phase ?",
        "return channel <= per_phase ?",
        CUDA_CONV,
    ),
    Mutant(
        "cuda: the mask passes what is 0",
        "tests/cuda_emulation/emulation.h",
        "return (numbers.x > 0 ? 0xFFFF : 0)",
        "return (numbers.x >= 0 ? 0xFFFF : 0)",
        "tests/cuda/test_residual_block.py",
    ),
    Mutant(
        "cuda: a multiprocessor's buffer is loaded before its products are done",
        "csrc/cuda/conv3x3_sm90.cuh",
        "      wgmma_wait<1>();\n",
        "",
        CUDA_SM90,
    ),
    Mutant(
        "cuda: a slice is used before all have it",
        "csrc/cuda/conv3x3_sm90.cuh",
        "__syncthreads();  // all see this slice\n",
        "\n",
        CUDA_SM90,
    ),
    Mutant(
        "cuda: dropped columns are written",
        "csrc/cuda/conv3x3_sm90.cuh",
        "ResultTile<kWarpgroups * kColumns, kHaloW>;",
        "ResultTile<kWarpgroups * kColumns, kTileW>;",
        CUDA_SM90,
    ),
    Mutant(
        "cuda: a further slice is waited for as if what is added came behind it",
        "csrc/cuda/conv3x3_sm90.cuh",
        "    cp_async_wait<1>();\n",
        "    cp_async_wait<kAdded + 1>();\n",
        "tests/cuda/test_residual_blocks.py -k further_slices",
    ),
    Mutant(
        "cuda: what is added is read before it is there",
        "csrc/cuda/epilogue.cuh",
        "      wait_for_copies(Added::kGroups - 1 - group);\n",
        "",
        CUDA_TRIO,
    ),
    Mutant(
        "cuda: three tiles' parts are multiplied before all have them",
        "csrc/cuda/conv3x3_trio.cuh",
        "  cp_async_wait<kPending>();\n  __syncthreads();\n",
        "  cp_async_wait<kPending>();\n",
        CUDA_TRIO,
    ),
    Mutant(
        "cuda: the next column of three tiles is multiplied before it is there",
        "csrc/cuda/conv3x3_trio.cuh",
        "wait_for_all<3>();",
        "wait_for_all<4>();",
        CUDA_TRIO,
    ),
    Mutant(
        "cuda: residuals replace a slice of three tiles that is multiplied",
        "csrc/cuda/conv3x3_trio.cuh",
        "const Results results{tile * Results::kBytes};",
        "const Results results{2 * kSliceBytes + tile * 4096};",
        CUDA_TRIO,
    ),
    Mutant(
        "cuda: a tile that the images do not have is taken for one",
        "csrc/cuda/conv3x3_trio.cuh",
        "if (place.n >= conv.batch) place.y",
        "if (place.n > conv.batch) place.y",
        CUDA_TRIO,
    ),
    Mutant(
        "cuda: a convolution of a launch has the first one's bias",
        "csrc/cuda/convolution.h",
        "return {at[index], *this}; }",
        "auto found = at[index]; found.bias = at[0].bias; return {found, *this}; }",
        "tests/cuda/test_residual_blocks.py -k several",
    ),
    Mutant(
        "cuda: a partial of a weight's gradient is lost",
        "csrc/cuda/wgrad_tasks.cuh",
        "for (int split = lane; split < splits;",
        "for (int split = lane + 1; split < splits;",
        CUDA_WGRAD,
    ),
    Mutant(
        "cuda: the row above a tile's first counts",
        "csrc/cuda/wgrad_sm80.cuh",
        "if (y - dy < 0 || y - dy >= kTileH) continue;",
        "if (y - dy < -1 || y - dy >= kTileH) continue;",
        CUDA_WGRAD,
    ),
    Mutant(
        "wgmma gradient: a warpgroup has another one's taps",
        WGRAD_SM90,
        "(stage + dx * kPieceBytes);",
        "(stage + (2 - dx) * kPieceBytes);",
        CUDA_WGRAD,
    ),
    Mutant(
        "wgmma gradient: a tile is loaded where products still read",
        WGRAD_SM90,
        "    wgmma_wait<1>();\n",
        "",
        CUDA_WGRAD,
    ),
    Mutant(
        "wgmma gradient: a tile is multiplied before all have it",
        WGRAD_SM90,
        "    __syncthreads();\n    const uint32_t stage",
        "    const uint32_t stage",
        CUDA_WGRAD,
    ),
    Mutant(
        "wgmma gradient: the next image begins a swath further",
        "csrc/cuda/wgrad_tiles.cuh",
        "    if (is_other_image) source_ = source_ + image_step_;\n",
        "",
        CUDA_WGRAD,
    ),
    Mutant(
        "wgmma gradient: the bias's sums replace what is still read",
        WGRAD_SM90,
        "    __syncthreads();  // all have left the tiles\n",
        "",
        CUDA_WGRAD,
    ),
    Mutant(
        "cuda tail: an edge's weights are for all pixels of its row",
        TAIL_APPLY,
        "    if constexpr (kEdge) keep_pixel(row, kept);\n",
        "",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: the gradient's reaches do not run backwards",
        TAIL_APPLY,
        "return kGradient ? kWindow - 1 - from : from;",
        "return from;",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: the bias of a pixel before the first",
        TAIL_APPLY,
        "for (int reach = first ? kBorder : kBorder - 1;",
        "for (int reach = kBorder - 1;",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: sums replace what is still multiplied",
        TAIL_APPLY,
        "  __syncthreads();  // all have left the tile, where the sums come\n",
        "",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: an edge is summed over the first image's rows",
        TAIL_GRADIENTS,
        "view.grad_row = view.grad_row * shape.height, view.input_row",
        "view.input_row",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: a pixel without a neighbour counts for its bias",
        TAIL_GRADIENTS,
        "  if (reach == kBorder - 1) visit(-1, kEveryReaches);\n",
        "",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: the shift's matrix is not transposed for a gradient",
        TAIL_GRADIENTS,
        "load(weight + (j * outputs + k))",
        "load(weight + (k * outputs + j))",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: the shift does not reach the last bias",
        TAIL_APPLY,
        "  if (!tail.shift.weight) return bias(k);\n",
        "  if (tail.out_bias) return bias(k);\n",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: a way's sign is left out",
        TAIL_COMPOSE,
        "sum += paths.sign[p] * paths.sign[q] < 0 ? -product : product;",
        "sum += product;",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: the last convolution's taps are not turned",
        TAIL_COMPOSE,
        "(2 - tap.y) * strides[2] + (2 - tap.x) * strides[3];",
        "tap.y * strides[2] + tap.x * strides[3];",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: a matrix's tile is replaced while it is multiplied",
        TAIL_COMPOSE,
        "    __syncthreads();  // all have left the tiles before\n",
        "",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: the products behind a layout are those from its block on",
        TAIL_COMPOSE,
        "static_cast<int>(blockIdx.x) - blocks_of_layout;",
        "static_cast<int>(blockIdx.x) - (blocks_of_layout - 1);",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: a row of the tile reads weights of another reach",
        TAIL_APPLY,
        "weights[kGradient ? kWindow - 1 - moved : moved]",
        "weights[moved]",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: a tile's rows are multiplied before they are there",
        TAIL_APPLY,
        "    load_gradient<T, O>(tail, shape, place, chunk);\n    __syncthreads();\n",
        "    load_gradient<T, O>(tail, shape, place, chunk);\n",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: a tile is replaced before all have left it",
        TAIL_GRADIENTS,
        "    __syncthreads();  // all see this tile, and have left the one before\n",
        "",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: columns beyond the image have a gradient",
        TAIL_GRADIENTS,
        "const bool exists = row < view.rows && column < view.columns;",
        "const bool exists = row < view.rows;",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: windows begin a row below",
        TAIL_GRADIENTS,
        "kAbove = kWindowRows / 2;",
        "kAbove = kWindowRows / 4;",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: a split's partial of the composed weight is lost",
        TAIL_GRADIENTS,
        "shape.chunks() * lines * shape.channels, task.splits);",
        "shape.chunks() * lines * shape.channels, task.splits - 1);",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: partials of the first output are those of all",
        TAIL_GRADIENTS,
        "numbers[k] = first(k < outputs ? k : 0);",
        "numbers[k] = first(0);",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: what follows is composed from the sums' block on",
        TAIL_GRADIENTS,
        "(block - blocks_of_sums) * kReducingThreads + thread",
        "block * kReducingThreads + thread",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: a second stage has the first part of its gradient",
        TAIL_GRADIENTS,
        "number = sum_of_numbers<kStageRows>(first, int64_t{channels_} * size_, parts_);",
        "number = load(first);",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: a negative tap's gradient is added",
        TAIL_GRADIENTS,
        "return signs_[way] < 0 ? -number : number;",
        "return number;",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: a tile of the bias's rows is left out",
        TAIL_GRADIENTS,
        "c < stage.channels || pair.is_center ? stage.after_size() : 0;",
        "c < stage.channels ? stage.after_size() : 0;",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: a tile of what passes biases on is left out",
        TAIL_GRADIENTS,
        "pair.is_center ? stage.channels + 1 : channels, responses, gradient);",
        "channels, responses, gradient);",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda tail: the last pair's part is lost",
        TAIL_GRADIENTS,
        "index < size ? tail.parts() - first : 0;",
        "index < size ? tail.parts() - first - 1 : 0;",
        CUDA_TAIL,
    ),
    Mutant(
        "cuda sum: a summand is left out",
        CUDA_SUM,
        "if (j < static_cast<size_t>(task.count)) pieces",
        "if (j + 1 < static_cast<size_t>(task.count)) pieces",
        SEVERAL,
    ),
    Mutant(
        "cuda sum: the upper number of a pair is the lower one",
        CUDA_SUM,
        "totals[i].x += numbers.x, totals[i].y += numbers.y;",
        "totals[i].x += numbers.x, totals[i].y += numbers.x;",
        SEVERAL,
    ),
    Mutant(
        "cuda sum: of a piece that is not full, one number",
        CUDA_SUM,
        "for (int64_t i = at; i < task.elements; ++i) {",
        "for (int64_t i = at; i < task.elements; i += kPiece) {",
        SEVERAL,
    ),
    Mutant(
        "cuda few: the row above a patch wraps",
        CUDA_FEW,
        "inside[tap] = row >= 0 && row < height &&",
        "inside[tap] = row < height &&",
        SEVERAL,
    ),
    Mutant(
        "cuda few: patches are multiplied before they are there",
        CUDA_FEW,
        "  cp_async_wait<0>();\n  __syncthreads();\n  mma_tiles::Sums",
        "  cp_async_wait<0>();\n  mma_tiles::Sums",
        SEVERAL,
    ),
    Mutant(
        "cuda few: a slice to few channels replaces the one before",
        CUDA_FEW,
        "    __syncthreads();  // all see this slice, and have left the one before\n",
        "",
        SEVERAL,
    ),
    Mutant(
        "cuda few: the taps of few outputs are not turned",
        "csrc/cuda/wgrad_few.cuh",
        "sides.few_outputs ? kTaps - 1 - tap : tap;",
        "tap;",
        CUDA_WGRAD,
    ),
    Mutant(
        "cuda few: pixels beyond the last count",
        "csrc/cuda/wgrad_few.cuh",
        "const bool valid = pixel < pixels && 8 * piece",
        "const bool valid = 8 * piece",
        CUDA_WGRAD,
    ),
    Mutant(
        "cuda l1: equal pixels have a gradient",
        CUDA_L1,
        "difference > 0 ? 1 :",
        "difference >= 0 ? 1 :",
        CUDA_L1_TESTS,
    ),
    Mutant(
        "cuda l1: a NaN is lost",
        CUDA_L1,
        "sum += difference < 0 ? -difference : difference;",
        "sum += difference > 0 ? difference : difference < 0 ? -difference : 0;",
        CUDA_L1_TESTS,
    ),
    Mutant(
        "cuda l1: the first image counts as another one",
        CUDA_L1,
        "    } else {\n      sum_of_others += sum;\n",
        "    }\n    {\n      sum_of_others += sum;\n",
        CUDA_L1_TESTS,
    ),
    Mutant(
        "cuda l1: halves are added before both are there",
        CUDA_L1,
        "step /= 2) {\n    __syncthreads();\n",
        "step /= 2) {\n",
        CUDA_L1_TESTS,
    ),
    Mutant(
        "cuda l1: partials beyond a block's threads are lost",
        CUDA_L1,
        "part < parts; part += kThreads",
        "part < parts; part += parts",
        CUDA_L1_TESTS,
    ),
    Mutant(
        "cuda l1: the last part's elements beyond the image are summed",
        CUDA_L1,
        "    if (at < images.size) visit(at, differences[i]);\n",
        "    visit(at, differences[i]);\n",
        CUDA_L1_TESTS,
    ),
    Mutant(
        "cuda l1: images of a later launch are the first ones",
        CUDA_L1,
        "const bool is_first = images.first + static_cast<int>(blockIdx.y) == 0;",
        "const bool is_first = blockIdx.y == 0;",
        CUDA_L1_TESTS,
    ),
    # Values that are not finite
    Mutant(
        "info_nce: an excluded pair's gradient is 0 times that of its row",
        "csrc/cpu/isa/softmax.h",
        "logit == -kInfinity ? Vec<T>{} : grad",
        "grad",
        NONFINITE,
    ),
    Mutant(
        "info_nce: the gradient of a key that follows a NaN",
        "csrc/cpu/contrast/info_nce_backward.h",
        "std::fill(padding, grad + contrast.stride, T(0));",
        "if (row == begin) std::fill(padding, grad + contrast.stride, T(0));",
        NONFINITE,
    ),
    Mutant(
        "distances: equal numbers have a gradient of 0, whatever the weight",
        "csrc/cpu/isa/rows.h",
        "(value < values[j] ? -weight : weight * 0)",
        "(value < values[j] ? -weight : Vec<T>{})",
        NONFINITE,
    ),
    Mutant(
        "convolutions: the gradient of a ReLU at a NaN is 0",
        "csrc/cpu/isa/epilogue.h",
        "load(positive_ + j * epilogue_.positive.column) <= 0 ? zero : value",
        "load(positive_ + j * epilogue_.positive.column) > 0 ? value : zero",
        NONFINITE,
    ),
    # Triton, interpreted
    Mutant(
        "triton: an excluded key has a gradient",
        "clsd_fast/triton/info_nce.py",
        "tl.where(kept, tl.exp(cosines * scale - highest[None, :]) * grad[None, :], 0)",
        "tl.exp(cosines * scale - highest[None, :]) * grad[None, :]",
        TRITON_NCE,
    ),
    Mutant(
        "triton: the projection of a query's gradient is left out",
        "clsd_fast/triton/info_nce.py",
        "projection = projection * (grad / total) + cosine * own",
        "projection = projection * (grad / total)",
        TRITON_NCE,
    ),
    Mutant(
        "triton: pixels that do not exist have biases",
        "clsd_fast/triton/tail/apply.py",
        "exist = tl.where(exists, (by_rows >> row) & (by_columns >> column) & 1, 0) != 0",
        "exist = ((by_rows >> row) & (by_columns >> column) & 1) != 0",
        TRITON_TAIL,
    ),
    Mutant(
        "triton: a gradient comes by the reaches of its own pixel",
        "clsd_fast/triton/tail/apply.py",
        "reaches_from(top, height, factor), reaches_from(left, width, factor)",
        "reaches_of(top, height, factor), reaches_of(left, width, factor)",
        TRITON_TAIL,
    ),
    Mutant(
        "triton: the last column has a right neighbour",
        CONVOLVE,
        "tl.where(x < width - 1, 0b100_100_100, 0)",
        "0b100_100_100",
        f"{TRITON_CONV} -k blocks_and",
    ),
    Mutant(
        "triton: the mask of a NaN",
        CONVOLVE,
        "total = tl.where(sign <= 0, 0, total)",
        "total = tl.where(sign > 0, total, 0)",
        f"{TRITON_CONV} -k finite",
    ),
    Mutant(
        "triton: a gradient reads the row that it belongs to",
        CONV_GRADIENTS,
        "start = pixel_offsets(b, top + down, left, height, width, channels_c, 1)",
        "start = pixel_offsets(b, top, left, height, width, channels_c, 1)",
        f"{TRITON_CONV} -k blocks_and",
    ),
    Mutant(
        "triton: a branch's partials are the first one's",
        CONV_GRADIENTS,
        "at = (branch * groups + group).to(tl.int64)",
        "at = group.to(tl.int64)",
        f"{TRITON_CONV} -k branches",
    ),
    Mutant(
        "triton: the turned taps are not",
        "clsd_fast/triton/conv/packing.py",
        "        tap = 8 - tap\n",
        "        tap = tap\n",
        f"{TRITON_CONV} -k blocks_and",
    ),
    Mutant(
        "python: a path's sign",
        "clsd_fast/_tail_axes.py",
        "paths += [Path(row, t, first + t, -1)",
        "paths += [Path(row, t, first + t, 1)",
        "tests/ops/test_upsample_tail.py -k reference",
    ),
]


def copy_of_checkout(target: Path) -> None:
    """All that git tracks or would, as it is in the working tree."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def environment(checkout: Path) -> dict[str, str]:
    paths = f"{checkout}{os.pathsep}{checkout / 'python'}"
    return {**os.environ, "PYTHONPATH": paths, "CLSD_FAST_CUDA": "off"}


def build(checkout: Path, file: str = "csrc") -> str | None:
    """Build what a file belongs to; the compiler's last words if that fails."""
    if file.startswith(("csrc/cuda", "tests/cuda_emulation")):
        program = "import native_build; native_build.build_emulation()"
        command = [sys.executable, "-c", program]
    elif file.startswith("csrc"):
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    else:
        return None
    paths = {"PYTHONPATH": f"{environment(checkout)['PYTHONPATH']}{os.pathsep}{checkout / 'tools'}"}
    result = subprocess.run(
        command,
        cwd=checkout,
        env=environment(checkout) | paths,
        capture_output=True,
        text=True,
    )
    return (result.stdout + result.stderr)[-2000:] if result.returncode else None


def run_tests(checkout: Path, tests: str) -> tuple[bool, str]:
    """Whether they pass, and what pytest said last. A process that crashes has failed."""
    # Through a shell, as a person types them.
    command = f"{sys.executable} -m pytest -q -x -p no:cacheprovider {tests}"
    result = subprocess.run(
        command, shell=True, cwd=checkout, env=environment(checkout), capture_output=True, text=True
    )
    last = (result.stdout.strip().splitlines() or [result.stderr[-500:]])[-1]
    if result.returncode > SIGNALLED:
        return False, "crashes"
    if result.returncode not in (0, 1):
        raise SystemExit(f"mutants: expected tests to pass or fail, got: {last}\n{command}")
    return result.returncode == 0, last


def plant(checkout: Path, mutant: Mutant) -> str | None:
    """Replace the text; why not, if it does not stand there exactly once."""
    path = checkout / mutant.file
    source = path.read_text()
    if (count := source.count(mutant.text)) != 1:
        return f"expected its text once in {mutant.file}, got {count} times"
    path.write_text(source.replace(mutant.text, mutant.fault))
    return None


def outcome(checkout: Path, mutant: Mutant) -> tuple[bool, str]:
    """Whether it is caught, and how."""
    path = checkout / mutant.file
    before = path.read_text()
    try:
        if wrong := plant(checkout, mutant):
            return False, wrong
        if wrong := build(checkout, mutant.file):
            return False, f"does not compile: {wrong}"
        passed, last = run_tests(checkout, mutant.tests)
        return not passed, f"NOT CAUGHT: {last}" if passed else last
    finally:
        path.write_text(before)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print their names")
    parser.add_argument("--only", default="", help="those whose name has this in it")
    options = parser.parse_args(argv)
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.name]
    if options.list:
        print("\n".join(mutant.name for mutant in chosen))
        return
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder)
        copy_of_checkout(checkout)
        if wrong := build(checkout):
            raise SystemExit(f"mutants: expected a checkout that builds, got\n{wrong}")
        for tests in dict.fromkeys(mutant.tests for mutant in chosen):
            passed, last = run_tests(checkout, tests)
            if not passed:
                raise SystemExit(f"mutants: expected {tests} to pass without a mutant, got: {last}")
        escaped = 0
        for mutant in chosen:
            start = time.monotonic()
            caught, how = outcome(checkout, mutant)
            escaped += not caught
            seconds = time.monotonic() - start
            print(f"{'caught' if caught else 'ESCAPED':8}{seconds:5.0f} s  {mutant.name}: {how}")
            sys.stdout.flush()
    print(f"{len(chosen) - escaped} of {len(chosen)} caught")
    raise SystemExit(1 if escaped else 0)


if __name__ == "__main__":
    main()
