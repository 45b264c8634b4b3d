#include "algorithm.h"

#include <string>

#include "../environment.h"

namespace clsd::cpu {

namespace {

const std::string kAllowed = environment("CLSD_FAST_CONV", "auto");

}  // namespace

bool allows_winograd() {
  if (kAllowed == "auto") return true;
  if (kAllowed == "direct") return false;
  throw not_one_of("CLSD_FAST_CONV", "auto, direct", kAllowed);
}

}  // namespace clsd::cpu
