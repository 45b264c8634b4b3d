// The table of kernels of one instruction set: built once for each, with CLSD_ISA naming it.
#include "epilogue.h"
#include "product.h"
#include "rows.h"
#include "softmax.h"
#include "winograd.h"

namespace clsd::cpu::CLSD_ISA {

namespace {

template <class T, int kTile>
constexpr WinogradKernels<T> kWinogradKernels = {
    .grad_output = transform_patch<GradOutputTransform<T, kTile>, T>,
    .weight = winograd_weight<T, kTile>,
    .output = winograd_output<T, kTile>,
    .grad_weight = winograd_grad_weight<T, kTile>,
};

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
    .winograd_input = transform_patch<InputTransform<T>, T>,
    .winograd_3x3 = kWinogradKernels<T, kWinogradTile3x3>,
    .winograd_5x5 = kWinogradKernels<T, kWinogradTile5x5>,
    .add_patch = add_patch<T>,
};

}  // namespace

extern const TileKernels<float> kFloatKernels;
extern const TileKernels<double> kDoubleKernels;
const TileKernels<float> kFloatKernels = kKernels<float>;
const TileKernels<double> kDoubleKernels = kKernels<double>;

}  // namespace clsd::cpu::CLSD_ISA
