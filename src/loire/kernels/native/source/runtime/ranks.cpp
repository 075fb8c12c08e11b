#include "ranks.h"

#include <atomic>
#include <chrono>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>

namespace loire {

namespace {

constexpr auto SPIN = std::chrono::microseconds(50);
constexpr auto FIRST_NAP = std::chrono::microseconds(20), LONGEST_NAP = std::chrono::microseconds(500);
// Naps are counted, not time: while the whole machine stands still, nobody is late.
constexpr int64_t MOST_NAPS = 1'000'000;

struct alignas(64) Place {
    std::atomic<uint64_t> met{0};  // the round whose part the rank has written
};

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

struct Ranks::Header {
    alignas(64) std::atomic<uint32_t> lost{0};
    Place places[MOST_RANKS];
};

Ranks::Ranks(void* memory, int64_t bytes, int64_t rank, int64_t size)
    : rank(rank),
      size(size),
      header_(static_cast<Header*>(memory)),  // of atomics, whose zero is that of memory
      parts_(reinterpret_cast<float*>(header_ + 1)) {
    static_assert(std::atomic<uint64_t>::is_always_lock_free, "processes share them");
    static_assert(sizeof(Header) % 64 == 0, "parts lie in lines of their own");
    if (size < 1 || size > MOST_RANKS || rank < 0 || rank >= size)
        throw std::invalid_argument("there is no rank " + std::to_string(rank) + " of " +
                                    std::to_string(size));
    if (bytes < shared_bytes(size))
        throw std::invalid_argument("ranks share " + std::to_string(bytes) + " bytes, but need " +
                                    std::to_string(shared_bytes(size)));
}

int64_t Ranks::shared_bytes(int64_t size) {
    return int64_t(sizeof(Header)) + 2 * size * PART * int64_t(sizeof(float));
}

float* Ranks::part_of(uint64_t round, int64_t of) const {
    return parts_ + (int64_t(round & 1) * size + of) * PART;
}

void Ranks::lose() { header_->lost.store(1, std::memory_order_release); }

void Ranks::meet() {
    ++round_;
    header_->places[rank].met.store(round_, std::memory_order_release);
    for (int64_t other = 0; other < size; ++other)
        if (other != rank) wait_for(other);
}

void Ranks::wait_for(int64_t other) const {
    const auto& met = header_->places[other].met;
    const auto is_there = [&] { return met.load(std::memory_order_acquire) >= round_; };
    if (is_there()) return;
    const auto begun = std::chrono::steady_clock::now();
    do {
        for (int i = 0; i < 32; ++i) {
            if (is_there()) return;
            relax();
        }
    } while (std::chrono::steady_clock::now() - begun < SPIN);
    auto nap = FIRST_NAP;
    for (int64_t naps = 0; naps < MOST_NAPS; ++naps) {
        if (header_->lost.load(std::memory_order_acquire) != 0)
            throw std::runtime_error("another rank is lost");
        std::this_thread::sleep_for(nap);
        if (is_there()) return;
        if (nap < LONGEST_NAP) nap += nap / 4;
    }
    throw std::runtime_error("rank " + std::to_string(other) + " makes no step");
}

namespace {

int64_t least_factor(int64_t count) {
    int64_t factor = 2;
    while (count % factor != 0) ++factor;
    return factor;
}

}  // namespace

void add_up(Summands& rows, int64_t count, int64_t together) {
    while (count > 1) {
        const int64_t factor = least_factor(count);
        count /= factor;
        for (int64_t group = 0; group < count; ++group) {
            float* sum = rows[group];
            const float* first = rows[group * factor];
            const float* second = rows[group * factor + 1];
            for (int64_t i = 0; i < together; ++i) sum[i] = first[i] + second[i];
            for (int64_t k = 2; k < factor; ++k) {
                const float* next = rows[group * factor + k];
                for (int64_t i = 0; i < together; ++i) sum[i] += next[i];
            }
        }
    }
}

}  // namespace loire
