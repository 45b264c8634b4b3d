#include <torch/csrc/stable/library.h>

#include "ops.h"

// An operator is put on CUDA tensors when its backward gives every gradient: until then, calls stay
// with PyTorch. The emulation has all.
#ifdef CLSD_CUDA_EMULATION
STABLE_TORCH_LIBRARY_IMPL(clsd_fast_emulated, CPU, library) {
  using namespace clsd::cuda;
  library.impl("conv3x3", TORCH_BOX(&conv3x3));
  library.impl("conv3x3_backward", TORCH_BOX(&conv3x3_backward));
  library.impl("residual_block", TORCH_BOX(&residual_block));
  library.impl("residual_block_backward", TORCH_BOX(&residual_block_backward));
  library.impl("pixel_shuffle_upsample", TORCH_BOX(&pixel_shuffle_upsample));
  library.impl("pixel_shuffle_upsample_backward", TORCH_BOX(&pixel_shuffle_upsample_backward));
}
#endif
