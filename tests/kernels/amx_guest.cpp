// What a processor with AMX has to show: the only program of a small Linux guest (its init), started
// by scripts/amx_emulated.sh on an emulated processor. It uses the library as it is, so it runs as
// well on a real processor, as an ordinary program. Prints a line per check and, last, "N passed, N
// failed"; returns 1 if one failed. Arguments: the checks to run, all without any.
//
// With self_test.cpp come the plain definition of the product (expected_row) and its numbers.

#include "runtime/self_test.cpp"

#include <sys/auxv.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <termios.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <thread>

#include "runtime/amx.h"

extern "C" {
const char* loire_instruction_sets();
int32_t loire_amx_state();
const char* loire_why_no_amx();
}

namespace loire {
extern const Operations portable;
#if !defined(LOIRE_EMULATE_AMX)
extern const Operations avx2, avx512, avx512_bf16;
#endif
}  // namespace loire

using namespace loire;

namespace {

int passed = 0, failed = 0;

double now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return double(time.tv_sec) + 1e-9 * double(time.tv_nsec);
}

template <typename... Values>
void expect(bool good, const char* format, Values... values) {
    std::printf("%8.3f %s ", now(), good ? "ok    " : "FAILED");
    std::printf(format, values...);
    std::printf("\n");
    std::fflush(stdout);
    ++(good ? passed : failed);
}

// The wait status of a child process that runs body.
template <typename Body>
int in_child(Body body) {
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        body();
        std::fflush(stdout);
        _exit(failed == 0 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    return status;
}

#if !defined(LOIRE_EMULATE_AMX)

// ---- tiles by hand: three registers of 16 rows of 64 bytes

struct alignas(64) TileBytes {
    uint8_t bytes[1024];
};

void configure_whole_tiles() {
    alignas(64) uint8_t configuration[64] = {1};
    for (int tile = 0; tile < 8; ++tile) configuration[16 + 2 * tile] = 64, configuration[48 + tile] = 16;
    asm volatile("ldtilecfg (%0)" : : "r"(configuration) : "memory");
}

void load_tiles(const TileBytes (&from)[3]) {
    asm volatile("tileloadd (%0,%3,1), %%tmm0\n\ttileloadd (%1,%3,1), %%tmm1\n\ttileloadd (%2,%3,1), %%tmm2"
                 : : "r"(&from[0]), "r"(&from[1]), "r"(&from[2]), "r"(int64_t(64)) : "memory");
}

void store_tiles(TileBytes (&to)[3]) {
    asm volatile("tilestored %%tmm0, (%0,%3,1)\n\ttilestored %%tmm1, (%1,%3,1)\n\ttilestored %%tmm2, (%2,%3,1)"
                 : : "r"(&to[0]), "r"(&to[1]), "r"(&to[2]), "r"(int64_t(64)) : "memory");
}

void release_tiles() { asm volatile("tilerelease" : : : "memory"); }

void fill(TileBytes (&tiles)[3], uint32_t seed) {
    for (TileBytes& tile : tiles)
        for (uint8_t& byte : tile.bytes) byte = uint8_t((seed = seed * 1664525u + 1013904223u) >> 24);
}

#endif

// ---- products

enum class Numbers { ORDINARY, ALL_FINITE, ALL, NEAR_UNDERFLOW, SMALL_INTEGERS };

std::vector<bfloat16> numbers(Random& random, Numbers kind, int64_t count) {
    std::vector<bfloat16> values = random.some(count);
    if (kind == Numbers::ORDINARY) return values;
    static uint32_t state = 7;
    for (bfloat16& value : values) {
        state = state * 1664525u + 1013904223u;
        const uint32_t sign_and_fraction = state >> 24 << 8 & 0x8000u, fraction = state >> 16 & 0x7fu;
        uint32_t exponent = state >> 8 & 0xffu;
        if (kind == Numbers::NEAR_UNDERFLOW) exponent = 60 + exponent % 8;  // products near 2^-126
        if (kind == Numbers::ALL_FINITE) exponent = std::min(exponent, 254u);
        value.bits = uint16_t(sign_and_fraction | exponent << 7 | fraction);
        constexpr uint16_t SMALL[] = {0xc000, 0xbf80, 0, 0x3f80, 0x4000};  // -2 to 2
        if (kind == Numbers::SMALL_INTEGERS) value.bits = SMALL[(state >> 16) % 5];
    }
    return values;
}

struct Product {
    Shape shape;
    bool has_bias, wide;
    Gate gate;
    int64_t rows;
    std::vector<bfloat16> weight, bias, x;

    Product(Random& random, Shape shape, bool has_bias, bool wide, Numbers kind = Numbers::ORDINARY,
            Gate gate = Gate::NONE)
        : shape(shape),
          has_bias(has_bias),
          wide(wide),
          gate(gate),
          rows(shape.out_features * panels_per_output(gate)),
          weight(numbers(random, kind, rows * shape.in_features)),
          bias(has_bias ? numbers(random, kind, rows)
                        : std::vector<bfloat16>(size_t(rows), {0x8000})),  // -0: adds nothing
          x(numbers(random, kind, shape.tokens * shape.in_features)) {}

    size_t size() const { return size_t(shape.tokens * shape.out_features); }

    // Every number in 32 bits: of the float, or of the bfloat16.
    std::vector<uint32_t> by(const Operations& operations, Pool& pool) const {
        const LinearOperations& dense = operations.bfloat16.dense;
        WeightMemory memory;
        const PackedWeight packed(pool, memory, dense, {{weight.data(), rows, shape.in_features}},
                                  has_bias ? bias.data() : nullptr, true, WeightFormat::DENSE, gate, {},
                                  shape.out_features, shape.in_features);
        Scratch activations;
        Forecast forecast;
        std::vector<uint32_t> out(size());
        std::vector<uint16_t> narrow(wide ? 0 : size());
        multiply(dense, pool, activations, forecast, packed, x.data(),
                 wide ? static_cast<void*>(out.data()) : narrow.data(), shape.out_features, wide, shape.tokens);
        if (!wide) std::copy(narrow.begin(), narrow.end(), out.begin());
        return out;
    }

    std::vector<uint32_t> expected(PieceFunction row, Pool& pool) const {
        std::vector<float> sums(size());
        const Expected arguments{shape, weight, bias, x, sums};
        pool.run(shape.tokens, row, &arguments);
        std::vector<uint32_t> out(size());
        std::memcpy(out.data(), sums.data(), size() * sizeof(float));
        if (!wide)
            for (uint32_t& bits : out) bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        return out;
    }
};

// As expected_row, but with fused multiply-adds over whole steps: a product beyond the range of
// float32 is not rounded before it is added. Where it would become infinite, or zero, that differs.
__attribute__((target("fma"))) void fused_row(const void* untyped, int64_t token, Scratch&) {
    const auto& a = *static_cast<const Expected*>(untyped);
    const int64_t inputs = a.shape.in_features, outputs = a.shape.out_features;
    for (int64_t out = 0; out < outputs; ++out) {
        float sum = 0.0f;
        for (int64_t step = 0; step < inputs; step += STEP) {
            float chains[2] = {0.0f, 0.0f};
            for (int64_t in = step; in < step + STEP; ++in)
                chains[in % 2] =
                    in < inputs ? __builtin_fmaf(widened(a.x[size_t(token * inputs + in)]),
                                                 widened(a.weight[size_t(out * inputs + in)]), chains[in % 2])
                                : chains[in % 2] + 0.0f;  // (of a chain's -0 that makes +0)
            sum += chains[0] + chains[1];
        }
        a.out[size_t(token * outputs + out)] = sum + widened(a.bias[size_t(out)]);
    }
}

bool is_nan(uint32_t bits) { return (bits & 0x7fffffffu) > 0x7f800000u; }

// How many differ; NaNs of float32 count as alike, whatever their bits.
size_t differences(const std::vector<uint32_t>& found, const std::vector<uint32_t>& expected, bool wide,
                   bool prints) {
    size_t count = 0;
    for (size_t i = 0; i < found.size(); ++i) {
        if (found[i] == expected[i] || (wide && is_nan(found[i]) && is_nan(expected[i]))) continue;
        if (prints && count < 4)
            std::printf("         at %zu of %zu: %08x, not %08x\n", i, found.size(), found[i], expected[i]);
        ++count;
    }
    return count;
}

size_t compare(const Product& product, const Operations& operations, Pool& pool, PieceFunction row) {
    return differences(product.by(operations, pool), product.expected(row, pool), product.wide, true);
}

// ---- the checks

#if !defined(LOIRE_EMULATE_AMX)

// Before permission is asked for, tiles are nobody's.
void no_permission() {
    const int status = in_child([] {
        const rlimit no_core{0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        configure_whole_tiles();
        release_tiles();
    });
    expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGILL,
           "tiles without permission end a process (status %x)", unsigned(status));
}

// What becomes of other users' small stacks for signals.
void small_signal_stacks() {
    static char memory[1 << 16];
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;
    const auto set = [](size_t size) {
        stack_t stack{};
        stack.ss_sp = memory, stack.ss_size = size;
        return sigaltstack(&stack, nullptr) == 0 ? 0 : errno;
    };
    const unsigned long least = getauxval(AT_MINSIGSTKSZ);
    in_child([&] {
        const int stack = set(8192);
        const int state = loire_amx_state();
        std::printf("         a signal stack needs %lu bytes; one of 8192 first: %s; then AMX: %d, \"%s\"\n", least,
                    strerror(stack), state, loire_why_no_amx());
    });
    const int status = in_child([&] {
        expect(syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0, "permission is given");
        std::printf("         after it a signal stack of 2048 bytes: %s, of 8192: %s\n", strerror(set(2048)),
                    strerror(set(8192)));
        expect(set(least + 8192) == 0, "a signal stack of AT_MINSIGSTKSZ + 8192 bytes is taken");
    });
    expect(status == 0, "permission in a child process");
}

#endif

void detection() {
    const double start = now();
    const std::string sets = loire_instruction_sets();
    std::printf("         %.3f s to detect: %s; AMX state %d \"%s\"\n", now() - start, sets.c_str(),
                int(loire_amx_state()), loire_why_no_amx());
    expect(loire_amx_state() == int(AmxState::WORKS), "AMX works, by the library's own test in a child process");
#if !defined(LOIRE_EMULATE_AMX)
    expect(sets == "amx,avx512_bf16,avx512,avx2,portable", "all instruction sets are found");
    expect(avx512_bf16.computes_exactly(), "VDPBF16PS adds in the order that linear.h states");
#endif
}

void many_shapes() {
    Pool one(1), two(2), five(5);
    Random random;
    size_t wrong = 0;
    uint32_t state = 1;
    const auto draw = [&](int64_t most) {
        state = state * 1664525u + 1013904223u;
        return int64_t(1 + (uint64_t(state) * uint64_t(most) >> 32));
    };
    for (int64_t tokens = 1; tokens <= 100; ++tokens) {
        const Shape shape{tokens, draw(tokens % 3 == 0 ? 700 : 200), draw(tokens % 5 == 0 ? 200 : 100)};
        const Product product(random, shape, tokens % 2 == 0, tokens % 4 < 2);
        const size_t count = compare(product, amx, tokens % 7 < 3 ? one : two, expected_row);
        if (count != 0)
            std::printf("         %zu wrong: %d tokens, %d inputs, %d outputs\n", count, int(tokens),
                        int(shape.in_features), int(shape.out_features));
        wrong += count;
    }
    expect(wrong == 0, "1 to 100 tokens, 1 to 700 inputs, 1 to 200 outputs, as expected_row: %zu differ", wrong);

    constexpr Shape LARGE[] = {{1, 9000, 64},   {15, 1100, 32},  {20, 600, 1100}, {33, 280, 530}, {64, 1024, 96},
                               {70, 600, 1100}, {100, 320, 200}, {193, 96, 33},   {230, 300, 40}, {400, 64, 70}};
    for (const Shape& shape : LARGE) {
        const Product product(random, shape, true, true);
        const auto expected = product.expected(expected_row, two);
        size_t count = 0;
        for (Pool* pool : {&one, &two, &five}) count += differences(product.by(amx, *pool), expected, true, true);
        expect(count == 0, "%d tokens, %d inputs, %d outputs, on 1, 2 and 5 threads: %zu differ", int(shape.tokens),
               int(shape.in_features), int(shape.out_features), count);
    }
}

void numbers_of_all_kinds() {
    Pool two(2);
    Random random;
    constexpr struct {
        Numbers kind;
        const char* name;
    } KINDS[] = {{Numbers::ALL_FINITE, "all finite numbers"},
                 {Numbers::ALL, "all numbers, infinities and NaN"},
                 {Numbers::NEAR_UNDERFLOW, "products near the smallest normal number"}};
    for (const auto& [kind, name] : KINDS) {
        size_t fused = 0, plain = 0, nan = 0, zero = 0, size = 0;
        for (int64_t inputs = 1; inputs <= 80; inputs += 3) {
            const Product product(random, {23, inputs, 37}, false, true, kind);
            const auto found = product.by(amx, two);
            fused += differences(found, product.expected(fused_row, two), true, true);
            plain += differences(found, product.expected(expected_row, two), true, false);
            for (const uint32_t bits : found) nan += is_nan(bits), zero += (bits & 0x7fffffffu) == 0;
            size += found.size();
        }
        expect(fused == 0, "%s: %zu of %zu differ from fused multiply-adds (%zu from expected_row; %zu NaN, %zu zero)",
               name, fused, size, plain, nan, zero);
    }
}

// What AMX is compared with where the order of additions makes no difference.
#if defined(LOIRE_EMULATE_AMX)
const Operations& other = portable;
#else
const Operations& other = avx512_bf16;
#endif

// Where no sum is rounded, another instruction set's order makes no difference.
void gated_products() {
    Pool two(2);
    Random random;
    size_t wrong = 0;
    for (const Gate gate : {Gate::SILU, Gate::GELU_TANH, Gate::GELU})
        for (const Shape& shape : SHAPES) {
            const Product product(random, shape, true, false, Numbers::SMALL_INTEGERS, gate);
            wrong += differences(product.by(amx, two), product.by(other, two), false, true);
        }
    expect(wrong == 0, "gated products of small whole numbers, as by %s: %zu differ", other.name, wrong);
}

// Whole numbers are exact, so the bits are those of the other instruction sets.
void quantized_products() {
    constexpr auto Q4_1 = WeightFormat(int32_t(WeightFormat::FIRST_BLOCKS) + int32_t(BlockFormat::Q4_1));
    constexpr struct {
        const char* name;
        WeightFormat format;
    } FORMATS[] = {{"int8", WeightFormat::INT8}, {"int4", WeightFormat::INT4}, {"Q4_1", Q4_1}};
    const auto operations_of = [](const Operations& set, WeightFormat format) -> const LinearOperations& {
        const TypedOperations& typed = set.bfloat16;
        if (format == WeightFormat::INT8) return typed.int8;
        return format == WeightFormat::INT4 ? typed.int4 : *typed.stored(BlockFormat::Q4_1);
    };
    constexpr Shape MORE[] = {{12, 330, 70}, {13, 330, 70}, {37, 1100, 130}, {230, 320, 70}};
    Pool two(2);
    Random random;
    std::vector<Shape> shapes(std::begin(SHAPES), std::end(SHAPES));
    shapes.insert(shapes.end(), std::begin(MORE), std::end(MORE));
    for (const auto& [name, format] : FORMATS) {
        size_t wrong = 0;
        for (const Gate gate : {Gate::NONE, Gate::SILU})
            for (Shape shape : shapes) {
                const int64_t rows = shape.out_features * panels_per_output(gate);
                const bool is_blocks = format == Q4_1;
                if (is_blocks) shape.in_features += -shape.in_features & 31;
                const auto x = random.some(shape.tokens * shape.in_features), bias = random.some(rows);
                // Blocks are a scale and a minimum, numbers like any, and codes, bits like any.
                const int64_t stride = is_blocks ? shape.in_features / 32 * 20 : shape.in_features;
                auto weight = random.some(rows * (is_blocks ? stride / 2 : stride));
                if (is_blocks)
                    for (size_t i = 0; i < weight.size(); i += 10) weight[i] = {0x2c12}, weight[i + 1] = {0xac34};
                std::vector<uint16_t> out[2];
                for (int i = 0; i < 2; ++i) {
                    const LinearOperations& linear = operations_of(i == 0 ? amx : other, format);
                    WeightMemory memory;
                    const PackedWeight packed(two, memory, linear, {{weight.data(), rows, stride}}, bias.data(), true,
                                              format, gate, {}, shape.out_features, shape.in_features);
                    Scratch activations;
                    Forecast forecast;
                    out[i].resize(size_t(shape.tokens * shape.out_features));
                    multiply(linear, two, activations, forecast, packed, x.data(), out[i].data(),
                             shape.out_features, false, shape.tokens);
                }
                for (size_t i = 0; i < out[0].size(); ++i) wrong += out[0][i] != out[1][i];
            }
        expect(wrong == 0, "%s, with and without a gate, as by %s: %zu differ", name, other.name, wrong);
    }
}

// A process made after the permission was given.
void child_process() {
    const int status = in_child([] {
        failed = 0;
        Random random;
        Pool two(2);
        const size_t wrong = compare(Product(random, {33, 100, 70}, true, true), amx, two, expected_row);
        expect(wrong == 0, "a child process: %zu differ", wrong);
    });
    expect(status == 0, "the child process ends well (status %x)", unsigned(status));
}

#if !defined(LOIRE_EMULATE_AMX)

void other_sets() {
    Pool two(2);
    Random random;
    for (const Operations* set : {&avx512_bf16, &avx512, &avx2}) {
        size_t wrong = 0;
        for (const Shape& shape : SHAPES)
            for (const bool wide : {false, true}) {
                const Product product(random, shape, true, wide);
                wrong += differences(product.by(*set, two), product.by(portable, two), wide, true);
            }
        expect(wrong == 0, "%s computes the linear as portable does: %zu differ", set->name, wrong);
    }
}

// ---- tiles that live through what the system does meanwhile

void other_threads() {
    std::atomic<int> wrong{0};
    const auto work = [&](uint32_t seed) {
        TileBytes before[3], after[3];
        for (int round = 0; round < 300; ++round) {
            fill(before, seed + 97u * uint32_t(round));
            configure_whole_tiles();
            load_tiles(before);
            sched_yield();
            store_tiles(after);
            release_tiles();
            if (std::memcmp(before, after, sizeof(before)) != 0) wrong.fetch_add(1);
        }
    };
    std::vector<std::thread> threads;
    for (uint32_t i = 0; i < 5; ++i) threads.emplace_back(work, i + 1);
    for (std::thread& thread : threads) thread.join();
    expect(wrong == 0, "tiles of five threads that yield to one another: %d of 1500 wrong", int(wrong));
}

volatile sig_atomic_t signals = 0;
volatile float handler_number = 1.0f;

// Uses vectors and tiles of its own.
void handle(int) {
    TileBytes mine[3], found[3];
    fill(mine, 5);
    configure_whole_tiles();
    load_tiles(mine);
    store_tiles(found);
    release_tiles();
    handler_number = handler_number * 1.5f + float(found[0].bytes[0] != mine[0].bytes[0]);
    if (handler_number > 1e9f) handler_number = 1.0f;
    signals = signals + 1;
}

void signals_at_work() {
    static char memory[1 << 16];
    stack_t stack{};
    stack.ss_sp = memory, stack.ss_size = sizeof(memory);
    sigaltstack(&stack, nullptr);
    struct sigaction action {};
    action.sa_handler = handle;
    action.sa_flags = SA_ONSTACK | SA_RESTART;
    sigaction(SIGUSR1, &action, nullptr);
    sigaction(SIGALRM, &action, nullptr);

    TileBytes before[3], after[3];
    fill(before, 11);
    configure_whole_tiles();
    load_tiles(before);
    raise(SIGUSR1);
    store_tiles(after);
    release_tiles();
    expect(signals == 1 && std::memcmp(before, after, sizeof(before)) == 0,
           "tiles are kept while a handler uses others");

    Random random;
    Pool one(1);
    const Product product(random, {100, 640, 96}, true, true);
    const auto expected = product.expected(expected_row, one);
    signals = 0;
    const itimerval often{{0, 50}, {0, 50}}, never{};
    setitimer(ITIMER_REAL, &often, nullptr);
    size_t wrong = 0;
    for (int round = 0; round < 10; ++round) wrong += differences(product.by(amx, one), expected, true, true);
    setitimer(ITIMER_REAL, &never, nullptr);
    expect(wrong == 0 && signals > 20, "the linear under %d signals: %zu differ", int(signals), wrong);
}

// ---- the instructions for whole numbers by themselves

enum class Bytes { SIGNED_SIGNED, SIGNED_UNSIGNED, UNSIGNED_SIGNED };

template <Bytes BYTES>
void multiply_bytes(const char* name) {
    TileBytes tiles[3];  // sums, a, b
    fill(tiles, 3);
    int32_t found[256], expected[256];
    std::memcpy(expected, tiles[0].bytes, sizeof(expected));
    for (int m = 0; m < 16; ++m)
        for (int n = 0; n < 16; ++n) {
            int64_t sum = expected[16 * m + n];
            for (int k = 0; k < 64; ++k) {
                const uint8_t a = tiles[1].bytes[64 * m + k], b = tiles[2].bytes[64 * (k / 4) + 4 * n + k % 4];
                sum += (BYTES == Bytes::UNSIGNED_SIGNED ? int64_t(a) : int64_t(int8_t(a))) *
                       (BYTES == Bytes::SIGNED_UNSIGNED ? int64_t(b) : int64_t(int8_t(b)));
            }
            expected[16 * m + n] = int32_t(sum);  // wraps
        }
    configure_whole_tiles();
    load_tiles(tiles);
    if constexpr (BYTES == Bytes::SIGNED_SIGNED) asm volatile("tdpbssd %tmm2, %tmm1, %tmm0");
    if constexpr (BYTES == Bytes::SIGNED_UNSIGNED) asm volatile("tdpbsud %tmm2, %tmm1, %tmm0");
    if constexpr (BYTES == Bytes::UNSIGNED_SIGNED) asm volatile("tdpbusd %tmm2, %tmm1, %tmm0");
    store_tiles(tiles);
    release_tiles();
    std::memcpy(found, tiles[0].bytes, sizeof(found));
    expect(std::memcmp(found, expected, sizeof(found)) == 0, "%s", name);
}

void whole_numbers() {
    multiply_bytes<Bytes::SIGNED_SIGNED>("TDPBSSD");
    multiply_bytes<Bytes::SIGNED_UNSIGNED>("TDPBSUD");
    multiply_bytes<Bytes::UNSIGNED_SIGNED>("TDPBUSD");
}

#endif

void limits() {
    std::vector<float> memory(LIMIT_PIECE_BYTES / sizeof(float), 1.0f);
    float result = -1.0f;
    const LimitArguments arguments{reinterpret_cast<const char*>(memory.data()), &result};
    Pool one(1);
    one.run(1, amx.read_limit, &arguments);
    expect(result == float(memory.size()), "the limit of reading: sums %g", double(result));
    one.run(1, amx.bfloat16.multiply_limit, &arguments);
    expect(result == 0.0f, "the limit of multiplying: %g", double(result));
}

// The kernel hands its parameters that it does not know to init as variables.
bool want(const char* name) {
    const char* names = std::getenv("checks");
    return names == nullptr || std::strstr(names, name) != nullptr;
}

int run() {
#if !defined(LOIRE_EMULATE_AMX)
    if (want("permission")) no_permission(), small_signal_stacks();
#endif
    std::atomic<bool> permitted{false};
    std::atomic<size_t> wrong_of_older{0};
    std::thread older([&] {
        while (!permitted) std::this_thread::sleep_for(std::chrono::milliseconds(10));
        if (loire_amx_state() != int(AmxState::WORKS)) return;
        Random random;
        Pool one(1);
        wrong_of_older = compare(Product(random, {18, 200, 40}, true, true), amx, one, expected_row);
    });
    detection();
    permitted = true;
    older.join();
    if (loire_amx_state() == int(AmxState::WORKS)) {
        expect(wrong_of_older == 0, "a thread older than the permission: %zu differ", size_t(wrong_of_older));
        if (want("fork")) child_process();
        if (want("numbers")) numbers_of_all_kinds();
        if (want("shapes")) many_shapes(), gated_products();
        if (want("quantized")) quantized_products();
#if !defined(LOIRE_EMULATE_AMX)
        if (want("state")) other_threads(), signals_at_work();
        if (want("sets")) other_sets();
        if (want("bytes")) whole_numbers();
#endif
        if (want("limits")) limits();
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    std::fflush(stdout);
    return failed == 0 ? 0 : 1;
}

}  // namespace

int main() {
    if (getpid() != 1) return run();
    const int status = in_child([] { _exit(run()); });  // a crash ends the child alone
    if (WIFSIGNALED(status)) std::printf("the checks ended with signal %d\n", WTERMSIG(status));
    std::printf("the end, status %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    std::fflush(stdout);
    tcdrain(1);  // power goes off at once
    reboot(RB_POWER_OFF);
}
