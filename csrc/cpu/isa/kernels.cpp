// The table of kernels of one instruction set: built once for each, with CLSD_ISA naming it.
#include "epilogue.h"
#include "product.h"
#include "rows.h"
#include "softmax.h"
#include "winograd.h"

namespace clsd::cpu::CLSD_ISA {

namespace {

template <class T>
constexpr TileKernels<T> kKernels = {
    .multiply = multiply<T>,
    .distance = distance<T>,
    .distance_backward = distance_backward<T>,
    .square_sum = square_sum<T>,
    .scale = scale<T>,
    .normalize_grad = normalize_grad<T>,
    .softmax_scan = softmax_scan<T>,
    .softmax_grad = softmax_grad<T>,
    .finish = finish<T>,
    .winograd_input = transform_patch<T, InputTransform>,
    .winograd_grad_output = transform_patch<T, GradOutputTransform>,
    .winograd_weight = winograd_weight<T>,
    .winograd_output = winograd_output<T>,
    .add_patch = add_patch<T>,
    .winograd_grad_weight = winograd_grad_weight<T>,
};

}  // namespace

extern const TileKernels<float> kFloatKernels;
extern const TileKernels<double> kDoubleKernels;
const TileKernels<float> kFloatKernels = kKernels<float>;
const TileKernels<double> kDoubleKernels = kKernels<double>;

}  // namespace clsd::cpu::CLSD_ISA
