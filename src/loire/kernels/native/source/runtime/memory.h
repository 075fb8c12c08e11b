// Memory in huge pages, where the system has them: fewer pages to look up while streaming.

#pragma once

#include <cstddef>
#include <memory>

namespace loire {

struct FreeMemory {
    void operator()(char* data) const;
};
using Memory = std::unique_ptr<char, FreeMemory>;

// At least so many bytes, in whole pages; in huge pages as far as they fill them. Throws bad_alloc.
Memory allocate(size_t bytes);

// Gives out parts of large blocks, so that small weights too lie in huge pages, one after another as
// they were made. A block is freed with the last of its parts. Not thread-safe, but parts may be
// freed anywhere.
class WeightMemory {
  public:
    // Aligned to 64 bytes.
    std::shared_ptr<char> take(size_t bytes);

  private:
    std::shared_ptr<char> block_;
    size_t used_ = 0, size_ = 0;
};

}  // namespace loire
