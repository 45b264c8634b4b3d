#include "algorithm.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace clsd::cpu {

namespace {

const std::string kAllowed = [] {
  const char* value = std::getenv("CLSD_FAST_CONV");
  return std::string(value ? value : "auto");
}();

}  // namespace

bool allows_winograd() {
  if (kAllowed == "auto") return true;
  if (kAllowed == "direct") return false;
  throw std::runtime_error("CLSD_FAST_CONV: expected one of auto, direct, got '" + kAllowed + "'");
}

}  // namespace clsd::cpu
