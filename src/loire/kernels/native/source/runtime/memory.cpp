#include "memory.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace loire {

namespace {

constexpr size_t PAGE = 4096, HUGE_PAGE = size_t(2) << 20, BLOCK = size_t(32) << 20, LINE = 64;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

void FreeMemory::operator()(char* data) const { std::free(data); }

Memory allocate(size_t bytes) {
    const size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : PAGE;
    const size_t rounded = round_up(bytes, alignment);
    Memory data(static_cast<char*>(std::aligned_alloc(alignment, rounded)));
    if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    // Only advice: without it all works the same.
    if (bytes >= HUGE_PAGE) (void)madvise(data.get(), rounded, MADV_HUGEPAGE);
#endif
    return data;
}

std::shared_ptr<char> WeightMemory::take(size_t bytes) {
    const size_t rounded = round_up(bytes, LINE);
    if (rounded > BLOCK / 4) return allocate(bytes);
    if (used_ + rounded > size_) {
        block_ = allocate(BLOCK);
        used_ = 0, size_ = BLOCK;
    }
    const size_t offset = used_;
    used_ += rounded;
    return {block_, block_.get() + offset};
}

}  // namespace loire
