#include "context.h"

#include <stdexcept>

namespace loire {

thread_local std::string message;

void check_range(const char* what, int64_t value, int64_t limit) {
    if (value < 0 || value >= limit)
        throw std::out_of_range(std::string(what) + " " + std::to_string(value) +
                                " is not below " + std::to_string(limit));
}

}  // namespace loire
