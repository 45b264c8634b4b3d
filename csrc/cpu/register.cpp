#include <torch/csrc/stable/library.h>

#include "ops.h"

STABLE_TORCH_LIBRARY_IMPL(clsd_fast, CPU, library) {
  using namespace clsd::cpu;
  library.impl("conv3x3", TORCH_BOX(&conv3x3));
  library.impl("conv3x3_backward", TORCH_BOX(&conv3x3_backward));
  library.impl("conv3x3s", TORCH_BOX(&conv3x3s));
  library.impl("conv3x3s_backward", TORCH_BOX(&conv3x3s_backward));
  library.impl("residual_block", TORCH_BOX(&residual_block));
  library.impl("residual_block_backward", TORCH_BOX(&residual_block_backward));
  library.impl("residual_blocks", TORCH_BOX(&residual_blocks));
  library.impl("residual_blocks_backward", TORCH_BOX(&residual_blocks_backward));
  library.impl("pixel_shuffle_upsample", TORCH_BOX(&pixel_shuffle_upsample));
  library.impl("pixel_shuffle_upsample_backward", TORCH_BOX(&pixel_shuffle_upsample_backward));
  library.impl("upsample_tail", TORCH_BOX(&upsample_tail));
  library.impl("upsample_tail_backward", TORCH_BOX(&upsample_tail_backward));
  library.impl("upsample_tails", TORCH_BOX(&upsample_tails));
  library.impl("upsample_tails_backward", TORCH_BOX(&upsample_tails_backward));
  library.impl("pairwise_similarity", TORCH_BOX(&pairwise_similarity));
  library.impl("pairwise_similarity_backward", TORCH_BOX(&pairwise_similarity_backward));
  library.impl("info_nce", TORCH_BOX(&info_nce));
  library.impl("info_nce_backward", TORCH_BOX(&info_nce_backward));
  library.impl("distance_ratio_loss", TORCH_BOX(&distance_ratio_loss));
  library.impl("distance_ratio_loss_backward", TORCH_BOX(&distance_ratio_loss_backward));
}
