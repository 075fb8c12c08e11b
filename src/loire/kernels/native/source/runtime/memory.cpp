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

// The last bytes do not get a huge page of their own: of a model's weights that would be a megabyte
// each.
Memory allocate(size_t bytes) {
    const size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : PAGE;
    void* data = nullptr;
    if (posix_memalign(&data, alignment, round_up(bytes, PAGE)) != 0) throw std::bad_alloc();
#if defined(__linux__)
    // Only advice: without it all works the same.
    const size_t huge = bytes / HUGE_PAGE * HUGE_PAGE;
    if (huge > 0) (void)madvise(data, huge, MADV_HUGEPAGE);
#endif
    return Memory(static_cast<char*>(data));
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
