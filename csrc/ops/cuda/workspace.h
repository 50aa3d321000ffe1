// Memory that a launch works in, and that nobody reads afterwards.
#pragma once

#include <cstdint>
#include <functional>

namespace hmsa {
namespace cuda {

// Gives a launch so many numbers of the arithmetic type. Called once at most.
using Workspace = std::function<void*(int64_t numbers)>;

}  // namespace cuda
}  // namespace hmsa
