#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

#include "memory.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace loire {

char* Scratch::reserve(size_t bytes) {
    if (bytes > size_) {
        std::free(data_);
        data_ = nullptr, size_ = 0;
        data_ = allocate(bytes).release();
        size_ = bytes;
    }
    return data_;
}

Scratch::~Scratch() { std::free(data_); }

namespace {

constexpr auto SPIN_TIME = std::chrono::microseconds(50);
constexpr uint64_t CLOSED = 0xffffffffu;  // in the low half of a ticket: nothing to hand out

std::atomic<unsigned> process_generation{0};  // counts forks: threads do not live on in a child
std::mutex creation;                          // of teams

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class FlushDenormals {
  public:
#if defined(__x86_64__)
    FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before_); }

  private:
    unsigned before_;
#elif defined(__aarch64__)
    FlushDenormals() {
        asm volatile("mrs %0, fpcr" : "=r"(before_));
        asm volatile("msr fpcr, %0" ::"r"(before_ | (1ull << 24)));
    }
    ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(before_)); }

  private:
    uint64_t before_;
#endif
};

// Spins for a while, doing idle() meanwhile; whether it got ready.
template <typename Ready, typename Idle>
bool spin(Ready ready, Idle idle) {
    const auto deadline = std::chrono::steady_clock::now() + SPIN_TIME;
    for (;;) {
        for (int i = 0; i < 32; ++i) {
            if (ready()) return true;
            idle();
        }
        if (std::chrono::steady_clock::now() >= deadline) return ready();
    }
}

// Half of it is left to what the operations in between need.
int64_t fetched_bytes() {
    int64_t cache = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return cache > 0 ? cache / 2 : 256 << 10;
}

// A worker's share of a stream, fetched bit by bit.
class Fetching {
  public:
    Fetching(int index, int threads) : index_(index), threads_(threads) {}

    // Some lines more, or a pause where there is nothing to fetch.
    void go_on(const Stream& stream) {
        if (stream.data != data_) begin(stream);
        if (next_ >= end_) return pause();
        for (int line = 0; line < 4; ++line, next_ += 64) __builtin_prefetch(data_ + next_, 0, 2);
    }

  private:
    void begin(const Stream& stream) {
        static const int64_t most = fetched_bytes();
        const int64_t first = stream.pieces * index_ / threads_;
        const int64_t last = stream.pieces * (index_ + 1) / threads_;
        data_ = stream.data;
        next_ = first * stream.piece_bytes;
        end_ = std::min(last * stream.piece_bytes, next_ + most);
    }

    const int index_, threads_;
    const char* data_ = nullptr;
    int64_t next_ = 0, end_ = 0;
};

std::vector<int> allowed_cpus() {
    std::vector<int> cpus;
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0)
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
            if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
#endif
    return cpus;
}

}  // namespace

// The pieces that one thread begins with. A ticket is (epoch of the operation, next piece of the
// share). Taking a piece is a compare-and-swap on it, so a worker that comes late, with the fields
// of an operation long finished, takes nothing: between operations tickets are closed, and a new
// epoch makes any old ticket differ.
struct alignas(64) Share {
    std::atomic<uint64_t> ticket{CLOSED};
};

// The workers of one process, and the operation they are at.
struct Pool::Team {
    const unsigned generation;
    std::mutex owner;

    std::vector<Share> shares;  // of each thread
    std::atomic<uint64_t> epoch{0};
    std::atomic<Order> order{Order::NEIGHBOURS};
    std::atomic<int64_t> done{0};
    std::atomic<int64_t> count{0};
    std::atomic<PieceFunction> function{nullptr};
    std::atomic<const void*> arguments{nullptr};
    std::atomic<bool> failed{false};
    std::atomic<bool> stop{false};

    // What to fetch while waiting; written while nobody waits for long, so a mixture does no harm.
    std::atomic<const char*> expected_data{nullptr};
    std::atomic<int64_t> expected_pieces{0}, expected_piece_bytes{0};

    std::mutex sleep;
    std::condition_variable alarm;
    std::atomic<int> sleepers{0};
    std::atomic<unsigned> wakes{0};

    std::vector<Scratch> scratch;
    std::vector<std::thread> workers;
    std::vector<int> cpus;        // this process may use; empty if workers are not pinned
    std::vector<int> worker_cpu;  // where each worker is pinned

    Team(int num_threads, unsigned generation)
        : generation(generation), shares(num_threads), scratch(num_threads), cpus(allowed_cpus()) {
        // With fewer threads than CPUs every process would pin its own to the same first ones.
        if (cpus.size() != size_t(num_threads)) cpus.clear();
        for (int index = 1; index < num_threads; ++index) {
            workers.emplace_back([this, index] { work(index); });
            if (!cpus.empty()) {
                worker_cpu.push_back(cpus[index]);
                pin(index - 1);
            }
        }
    }

    ~Team() {
        stop.store(true);
        ring();
        for (auto& worker : workers) worker.join();
    }

    void pin(int worker) {
#if defined(__linux__)
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(worker_cpu[worker], &set);
        pthread_setaffinity_np(workers[worker].native_handle(), sizeof(set), &set);
#else
        (void)worker;
#endif
    }

    // The caller stays where the system put it; a worker that is pinned there makes room.
    void make_room() {
#if defined(__linux__)
        const int here = sched_getcpu();
        for (size_t worker = 0; worker < worker_cpu.size(); ++worker) {
            if (worker_cpu[worker] != here) continue;
            for (const int cpu : cpus) {
                bool taken = cpu == here;
                for (const int other : worker_cpu) taken = taken || other == cpu;
                if (taken) continue;
                worker_cpu[worker] = cpu;
                pin(int(worker));
                return;
            }
        }
#endif
    }

    void ring() {
        const std::lock_guard<std::mutex> lock(sleep);
        wakes.fetch_add(1);
        alarm.notify_all();
    }

    void work(int index) {
        const FlushDenormals flush;
        uint64_t seen = 0;
        unsigned heard = 0;
        const auto called = [&] {
            return epoch.load() != seen || wakes.load() != heard || stop.load();
        };
        Fetching fetching(index, int(shares.size()));
        const auto fetch = [&] {
            fetching.go_on({expected_data.load(std::memory_order_relaxed),
                            expected_pieces.load(std::memory_order_relaxed),
                            expected_piece_bytes.load(std::memory_order_relaxed)});
        };
        for (;;) {
            if (!spin(called, fetch)) {
                std::unique_lock<std::mutex> lock(sleep);
                sleepers.fetch_add(1);
                alarm.wait(lock, called);
                sleepers.fetch_sub(1);
            }
            if (stop.load()) return;
            heard = wakes.load();
            seen = epoch.load();
            help(seen, index);
        }
    }

    // Takes pieces of the operation until none is left: first its own share, then of the others'.
    void help(uint64_t now, int index) {
        const int threads = int(shares.size());
        for (int i = 0; i < threads; ++i) take(now, (index + i) % threads, scratch[index]);
    }

    void take(uint64_t now, int share, Scratch& own) {
        std::atomic<uint64_t>& tickets = shares[share].ticket;
        const int64_t threads = int64_t(shares.size());
        uint64_t ticket = tickets.load(std::memory_order_acquire);
        for (;;) {
            const int64_t next = int64_t(ticket & CLOSED);
            const int64_t all = count.load(std::memory_order_relaxed);
            const bool neighbours = order.load(std::memory_order_relaxed) == Order::NEIGHBOURS;
            const int64_t piece =
                neighbours ? all * share / threads + next : next * threads + share;
            if (ticket >> 32 != now || piece >= (neighbours ? all * (share + 1) / threads : all))
                return;
            const PieceFunction run = function.load(std::memory_order_relaxed);
            const void* given = arguments.load(std::memory_order_relaxed);
            if (!tickets.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel))
                continue;
            try {
                run(given, piece, own);
            } catch (const std::bad_alloc&) {
                failed.store(true);
            }
            done.fetch_add(1, std::memory_order_release);
            ticket = tickets.load(std::memory_order_acquire);
        }
    }

    void run(int64_t pieces, PieceFunction run, const void* given, Order given_order) {
        make_room();
        order.store(given_order, std::memory_order_relaxed);
        function.store(run, std::memory_order_relaxed);
        arguments.store(given, std::memory_order_relaxed);
        count.store(pieces, std::memory_order_relaxed);
        done.store(0, std::memory_order_relaxed);
        const uint64_t now = (epoch.load() + 1) & CLOSED;
        for (Share& share : shares) share.ticket.store(now << 32, std::memory_order_release);
        epoch.store(now);
        if (sleepers.load() > 0) ring();
        help(now, 0);
        const auto finished = [&] { return done.load(std::memory_order_acquire) == pieces; };
        while (!spin(finished, pause)) sched_yield();
        for (Share& share : shares) share.ticket.store(now << 32 | CLOSED);
        if (failed.exchange(false)) throw std::bad_alloc();
    }
};

Pool::Pool(int num_threads) : num_threads_(num_threads) {
    static const int registered = pthread_atfork(
        nullptr, nullptr, [] { process_generation.fetch_add(1, std::memory_order_relaxed); });
    (void)registered;
    team();
}

Pool::~Pool() {
    Team* team = team_.load();
    // After fork() the threads of the parent's team do not exist here: they cannot be joined.
    if (team->generation == process_generation.load()) delete team;
}

Pool::Team& Pool::team() {
    const unsigned generation = process_generation.load(std::memory_order_relaxed);
    Team* team = team_.load(std::memory_order_acquire);
    if (team == nullptr || team->generation != generation) {
        const std::lock_guard<std::mutex> lock(creation);
        team = team_.load();
        if (team == nullptr || team->generation != generation) {
            team = new Team(num_threads_, generation);  // a forked parent's team is left alone
            team_.store(team, std::memory_order_release);
        }
    }
    return *team;
}

std::mutex& Pool::mutex() { return team().owner; }

void Pool::run(int64_t count, PieceFunction function, const void* arguments, Order order) {
    Team& team = *team_.load();
    const FlushDenormals flush;
    if (count > 1 && num_threads_ > 1) {
        team.run(count, function, arguments, order);
        return;
    }
    for (int64_t piece = 0; piece < count; ++piece) function(arguments, piece, team.scratch[0]);
}

void Pool::expect(const Stream& stream) {
    Team& team = *team_.load();
    team.expected_pieces.store(stream.pieces, std::memory_order_relaxed);
    team.expected_piece_bytes.store(stream.piece_bytes, std::memory_order_relaxed);
    team.expected_data.store(stream.data, std::memory_order_relaxed);
}

void Pool::wake() {
    Team& awaited = team();
    if (awaited.sleepers.load() > 0) awaited.ring();
}

}  // namespace loire
