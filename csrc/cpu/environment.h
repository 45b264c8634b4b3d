// Environment variables that name one of a few things.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace clsd::cpu {

// The value; the fallback where it is empty or not set.
inline std::string environment(const char* name, const char* fallback) {
  const char* value = std::getenv(name);
  return value && *value ? value : fallback;
}

// What to throw for a value that is none of the choices. Its bytes may be of no encoding, and
// PyTorch reads messages as UTF-8: all but ASCII is escaped.
inline std::runtime_error not_one_of(const std::string& name, const std::string& choices,
                                     const std::string& value) {
  std::string quoted;
  for (const unsigned char byte : value) {
    char escaped[5] = {static_cast<char>(byte)};
    if (byte < 0x20 || byte > 0x7e) std::snprintf(escaped, sizeof escaped, "\\x%02x", byte);
    quoted += escaped;
  }
  return std::runtime_error(name + ": expected one of " + choices + ", got '" + quoted + "'");
}

}  // namespace clsd::cpu
