// Memory that a launch works in, and that nobody reads afterwards.
#pragma once

#include <cstdint>
#include <functional>

namespace hmsa {
namespace cuda {

// Gives a launch so many numbers of the arithmetic type. Called once at most.
using Workspace = std::function<void*(int64_t numbers)>;

// Hands out parts of a workspace, one behind the other: as many bytes as are asked for.
class WorkspaceParts {
 public:
  explicit WorkspaceParts(void* workspace) : next_(static_cast<unsigned char*>(workspace)) {}

  template <typename V>
  V* take(int64_t bytes) {
    void* const at = next_;
    next_ += bytes;
    return static_cast<V*>(at);
  }

 private:
  unsigned char* next_;
};

}  // namespace cuda
}  // namespace hmsa
