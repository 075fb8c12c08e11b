// Processes that compute one model together, and the memory they share.

#pragma once

#include <cstdint>

namespace loire {

constexpr int64_t MOST_RANKS = 64;

// Each has a rank. They meet in rounds: in a round each writes its part, and when all have, each reads all
// parts. Two rounds' parts lie apart, so that one meeting per round is enough: whoever writes the next but
// one has met the others after they read.
class Ranks {
  public:
    // memory: zeros at first, of shared_bytes(size); all ranks map the same, and it outlives this.
    Ranks(void* memory, int64_t bytes, int64_t rank, int64_t size);
    Ranks(const Ranks&) = delete;
    Ranks& operator=(const Ranks&) = delete;

    static int64_t shared_bytes(int64_t size);
    static constexpr int64_t PART = 1 << 18;  // floats of one rank in a round, at most

    const int64_t rank, size;

    // Where this rank's part of the coming round goes.
    float* own() { return part_of(round_ + 1, rank); }

    // Ends this rank's writing and waits for that of the others: spins for some tens of microseconds, then
    // sleeps. Throws runtime_error when one is lost, or makes no step for minutes.
    void meet();

    // A rank's part of the round in which they met.
    const float* part(int64_t of) const { return part_of(round_, of); }

    // Whoever waits gives up, and everybody who meets from now on. On any thread.
    void lose();

  private:
    float* part_of(uint64_t round, int64_t of) const;
    void wait_for(int64_t other) const;

    struct Header;
    Header* const header_;
    float* const parts_;
    uint64_t round_ = 0;
};

// Numbers that are added up in a tree: neighbours in groups of the least factor of their count, then the
// groups likewise. A share of them that is a whole branch may be added up elsewhere: the sum has the same bits.
constexpr int64_t MOST_SUMMANDS = 64, SUMMED_TOGETHER = 256;
using Summands = float[MOST_SUMMANDS][SUMMED_TOGETHER];

// rows[0] becomes the sum of `count` rows, `together` numbers of each.
void add_up(Summands& rows, int64_t count, int64_t together);

}  // namespace loire
