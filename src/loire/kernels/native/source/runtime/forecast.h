// Which weight comes next: a decoder takes its weights in the same order in every step.

#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>

namespace loire {

// Memory that the pieces of an operation read, one after another. Never dereferenced: a processor
// fetches ahead from any address.
struct Stream {
    const char* data = nullptr;
    int64_t pieces = 0, piece_bytes = 0;
};

// Remembers what followed each stream the last time.
class Forecast {
  public:
    // To be told of each stream as it begins.
    void begins(const Stream& stream) {
        if (following_.size() > MOST) following_.clear();  // of weights long freed
        following_[last_] = stream;
        last_ = stream.data;
    }

    // What followed the stream that began last, the time before; nothing if it is the first time.
    Stream next() const {
        const auto found = following_.find(last_);
        return found == following_.end() ? Stream{} : found->second;
    }

  private:
    static constexpr size_t MOST = 4096;
    std::unordered_map<const char*, Stream> following_;
    const char* last_ = nullptr;
};

}  // namespace loire
