#include "self_test.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <exception>
#include <vector>

#include "multiply.h"

namespace loire {

namespace {

constexpr int TIME_LIMIT_MS = 1000;

struct Shape {
    int64_t tokens, in_features, out_features;
};

// One token, one block of one and of two tiles, several blocks, several pieces of tokens, several
// chunks of steps and panels of a piece; whole and partial steps and panels.
constexpr Shape SHAPES[] = {{1, 96, 64},   {1, 31, 5},   {2, 1100, 33}, {9, 64, 96}, {16, 700, 32},
                            {17, 40, 70},  {31, 320, 40}, {32, 64, 130}, {33, 280, 530},
                            {100, 65, 33}};

class Random {
  public:
    // Exponents so far apart that another order of additions rounds otherwise; some denormals.
    bfloat16 next() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        const auto bits = uint32_t(state_ >> 40);
        if (bits % 64 == 0) return {uint16_t(bits >> 8 & 0x807f)};
        return {uint16_t((bits >> 8 & 0x83ff) | 0x3c00)};
    }

    std::vector<bfloat16> some(int64_t count) {
        std::vector<bfloat16> values(static_cast<size_t>(count));
        for (bfloat16& value : values) value = next();
        return values;
    }

  private:
    uint64_t state_ = 1;
};

// A row of the product as linear_amx.h states it, with plain floats.
struct Expected {
    const Shape& shape;
    const std::vector<bfloat16>&weight, &bias, &x;
    std::vector<float>& out;
};

float widened(bfloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    return wide;
}

// (Products of these numbers are exact in float32: multiplying and adding is the fused operation.)
void expected_row(const void* untyped, int64_t token, Scratch&) {
    const auto& a = *static_cast<const Expected*>(untyped);
    const int64_t inputs = a.shape.in_features, outputs = a.shape.out_features;
    for (int64_t out = 0; out < outputs; ++out) {
        float sum = 0.0f;
        for (int64_t step = 0; step < inputs; step += STEP) {
            float chains[2] = {0.0f, 0.0f};
            for (int64_t in = step; in < step + STEP && in < inputs; ++in)
                chains[in % 2] += widened(a.x[size_t(token * inputs + in)]) *
                                  widened(a.weight[size_t(out * inputs + in)]);
            sum += chains[0] + chains[1];
        }
        a.out[size_t(token * outputs + out)] = sum + widened(a.bias[size_t(out)]);
    }
}

std::vector<float> product(const Operations& operations, Pool& pool, const Shape& shape,
                           const std::vector<bfloat16>& weight, const std::vector<bfloat16>& bias,
                           const std::vector<bfloat16>& x) {
    const LinearOperations& dense = operations.bfloat16.dense;
    WeightMemory memory;
    const PackedWeight packed(pool, memory, dense, {{weight.data(), shape.out_features, shape.in_features}},
                              bias.data(), true, WeightFormat::DENSE, Gate::NONE, {},
                              shape.out_features, shape.in_features);
    Scratch activations;
    std::vector<float> out(size_t(shape.tokens * shape.out_features));
    Forecast forecast;
    multiply(dense, pool, activations, forecast, packed, x.data(), out.data(), shape.out_features,
             true, shape.tokens);
    return out;
}

// Whether tokens that are computed together, by tiles, get what each gets alone, without.
bool quantized_agrees(const Operations& operations, Pool& pool, Random& random,
                      WeightFormat format) {
    const LinearOperations& quantized =
        format == WeightFormat::INT8 ? operations.bfloat16.int8 : operations.bfloat16.int4;
    constexpr int64_t TOKENS = 37, INPUTS = 330, OUTPUTS = 70;
    const auto rows = random.some(OUTPUTS * INPUTS), x = random.some(TOKENS * INPUTS);
    WeightMemory memory;
    const PackedWeight packed(pool, memory, quantized, {{rows.data(), OUTPUTS, INPUTS}}, nullptr,
                              true, format, Gate::NONE, {}, OUTPUTS, INPUTS);
    Scratch activations;
    Forecast forecast;
    std::vector<float> together(size_t(TOKENS * OUTPUTS)), alone(together);
    multiply(quantized, pool, activations, forecast, packed, x.data(), together.data(), OUTPUTS,
             true, TOKENS);
    for (int64_t token = 0; token < TOKENS; ++token)
        multiply(quantized, pool, activations, forecast, packed, x.data() + token * INPUTS,
                 alone.data() + token * OUTPUTS, OUTPUTS, true, 1);
    return std::memcmp(together.data(), alone.data(), alone.size() * sizeof(float)) == 0;
}

bool agrees(const Operations& operations) {
    Pool pool(2);
    Random random;
    for (const WeightFormat format : {WeightFormat::INT8, WeightFormat::INT4})
        if (!quantized_agrees(operations, pool, random, format)) return false;
    for (const Shape& shape : SHAPES) {
        const auto weight = random.some(shape.out_features * shape.in_features);
        const auto bias = random.some(shape.out_features);
        const auto x = random.some(shape.tokens * shape.in_features);
        std::vector<float> expected(size_t(shape.tokens * shape.out_features));
        const Expected arguments{shape, weight, bias, x, expected};
        pool.run(shape.tokens, expected_row, &arguments);
        const auto found = product(operations, pool, shape, weight, bias, x);
        if (std::memcmp(expected.data(), found.data(), found.size() * sizeof(float)) != 0)
            return false;
    }
    return true;
}

// A crash shall end the child at once, whatever the parent does about signals, and silently.
void let_signals_end_this_process() {
    const rlimit no_core{0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_UNBLOCK, &all, nullptr);
    for (const int signal : {SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGABRT, SIGTRAP, SIGSYS, SIGALRM})
        std::signal(signal, SIG_DFL);
}

[[noreturn]] void run_child(const Operations& operations, int result) {
    let_signals_end_this_process();
    alarm(2);  // should the parent be gone
    char verdict = 'x';
    try {
        verdict = agrees(operations) ? 'y' : 'n';
    } catch (const std::exception&) {
        verdict = 'm';
    }
    if (write(result, &verdict, 1) != 1) _exit(1);
    _exit(0);
}

std::string end_of(pid_t child) {
    int status = 0;
    pid_t ended;
    do ended = waitpid(child, &status, 0);
    while (ended < 0 && errno == EINTR);
    // (Where children are not waited for, their end is not known.)
    if (ended == child && WIFSIGNALED(status))
        return "it ended with signal " + std::to_string(WTERMSIG(status)) + " (" +
               strsignal(WTERMSIG(status)) + ")";
    return "it ended without a result";
}

}  // namespace

std::string self_test(const Operations& operations) {
    int ends[2];
    if (pipe(ends) != 0) return std::string("no pipe: ") + std::strerror(errno);
    for (const int end : ends) fcntl(end, F_SETFD, FD_CLOEXEC);
    const pid_t child = fork();
    if (child < 0) {
        const int error = errno;
        close(ends[0]), close(ends[1]);
        return std::string("no child process: ") + std::strerror(error);
    }
    if (child == 0) run_child(operations, ends[1]);
    close(ends[1]);

    pollfd result{ends[0], POLLIN, 0};
    int ready;
    do ready = poll(&result, 1, TIME_LIMIT_MS);
    while (ready < 0 && errno == EINTR);
    char verdict = 0;
    const bool answered = ready > 0 && read(ends[0], &verdict, 1) == 1;
    close(ends[0]);
    if (ready == 0) kill(child, SIGKILL);
    const std::string end = end_of(child);
    if (ready == 0) return "no result within " + std::to_string(TIME_LIMIT_MS) + " ms";
    if (!answered) return end;
    if (verdict == 'n') return "some bits of the result are wrong";
    if (verdict == 'm') return "no memory or threads for it";
    return "";
}

}  // namespace loire
