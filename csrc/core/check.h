// HMSA_CHECK(condition, parts...): throws std::runtime_error with the parts joined.
//
// The text is for the person who called the op in Python, so no file name or line number precedes it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace hmsa {

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace hmsa

#define HMSA_CHECK(condition, ...)                           \
  do {                                                       \
    if (!(condition)) {                                      \
      throw std::runtime_error(::hmsa::concat(__VA_ARGS__)); \
    }                                                        \
  } while (false)
