// Threads that compute the pieces of one operation after another.

#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

#include "forecast.h"
#include "../kernels/operations.h"

namespace loire {

// Which pieces a thread begins with: a run of neighbours, so that it reads memory as one stream, or
// every n-th, so that all begin with the largest where pieces are sorted.
enum class Order { NEIGHBOURS, EVERY_NTH };

// Hands out pieces one by one, to each thread first its own share, then what is left of the others';
// the calling thread takes part, so a worker that the system does not run delays no more than the
// piece it holds. Between operations workers spin for some tens of microseconds, then sleep; while
// they spin, they fetch what they are expected to read next into their L2 cache.
//
// While pieces are computed, float32 denormals are flushed to zero, read or written.
class Pool {
  public:
    explicit Pool(int num_threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    // Several threads may own a pool; whoever runs something holds this.
    std::mutex& mutex();

    // function(arguments, piece, scratch) for every piece in [0, count); returns when all are done.
    void run(int64_t count, PieceFunction function, const void* arguments,
             Order order = Order::NEIGHBOURS);

    // What the next operation but the present one will read, its pieces handed out as neighbours.
    void expect(const Stream& stream);

    // Starts workers that have gone to sleep, so that they spin when work comes.
    void wake();

    int num_threads() const { return num_threads_; }

  private:
    struct Team;
    Team& team();

    const int num_threads_;
    std::atomic<Team*> team_{nullptr};
};

}  // namespace loire
