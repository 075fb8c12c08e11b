// Causal attention over the paged cache, one pass over keys and values, softmax in float32.
//
// Keys are cut at multiples of SPLIT positions from 0. A split gives each query its maximum m, the
// sum l of exp(score - m) and the weighted values o; splits are folded in ascending order, as in
// Milakov & Gimelshein 2018 and FlashAttention (Dao et al. 2022). Only the position of a query
// decides what is added in which order: keys it must not see get the weight 0, and adding those
// changes no bit. So it does not matter which queries are computed together, or by whom.
//
// In bfloat16 the weights exp(score - m) are rounded to bfloat16 before they meet the values (as in
// FlashAttention), and l is the sum of what they are rounded to. Keys are weighed in pairs, the later
// one first, as VDPBF16PS does it.
//
// The rows of a piece are its tokens times the query heads of one key/value head: each key and
// value is read once for all of them. Tokens of several sequences are in one piece where those share
// a prefix. Scores have a lane per key, from keys transposed 16 at a
// time; their dot products are one chain over the head's dimensions per lane.

#if defined(LOIRE_AVX512)
constexpr int ROWS_TOGETHER = 6, VECTORS_TOGETHER = 4;
#elif defined(LOIRE_AVX2)
constexpr int ROWS_TOGETHER = 2, VECTORS_TOGETHER = 2;
#else
constexpr int ROWS_TOGETHER = 1, VECTORS_TOGETHER = 2;
#endif
constexpr int TILES_TOGETHER = PARTS == 1 ? 2 : 1;  // of 16 transposed keys
constexpr int64_t KEYS_TOGETHER = 16 * TILES_TOGETHER;
constexpr int64_t KEYS_AHEAD = 2 * KEYS_TOGETHER;   // fetched while others are scored,
constexpr int64_t LINES_PER_WORD = TILES_TOGETHER;  // so many lines per word of those
constexpr int64_t VALUES_AHEAD = 32;                // fetched while others are weighed

// tile[w][lane] = word w of rows[lane].
INLINE void transpose(const char* const* rows, int64_t words, float* tile) {
#if defined(LOIRE_AVX512)
    for (int64_t w = 0; w < words; w += 16) {
        const __mmask16 mask = words - w >= 16 ? 0xffff : (1u << (words - w)) - 1;
        __m512i r[16], t[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) r[i] = _mm512_maskz_loadu_epi32(mask, rows[i] + w * 4);
#pragma GCC unroll 8
        for (int i = 0; i < 16; i += 2) {
            t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
            t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 16; i += 4) {
            r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
            r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
            r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
            r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
            t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
            t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
            t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            _mm512_storeu_si512(tile + (w + i) * 16, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
            _mm512_storeu_si512(tile + (w + i + 8) * 16,
                                _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
            _mm512_storeu_si512(tile + (w + i + 4) * 16,
                                _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
            _mm512_storeu_si512(tile + (w + i + 12) * 16,
                                _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
        }
    }
#else
    for (int lane = 0; lane < 16; ++lane)
        for (int64_t w = 0; w < words; ++w)
            __builtin_memcpy(tile + w * 16 + lane, rows[lane] + w * 4, 4);
#endif
}

// How queries are kept and multiplied with transposed keys. A bfloat16 word holds dimensions
// (2 w, 2 w + 1); the upper one comes first in the chain, as VDPBF16PS has it.
struct Float32Scores {
    using Query = float;
    static int64_t words(int64_t head_dim) { return head_dim; }
    static int64_t queries(int64_t head_dim) { return head_dim; }

    static INLINE void keep(const float* head, int64_t head_dim, float* query) {
        __builtin_memcpy(query, head, head_dim * sizeof(float));
    }

    template <int ROWS>
    static INLINE void link(const Vec16& keys, const float* queries, int64_t stride, int64_t word,
                            Vec16 (&scores)[ROWS]) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
            scores[r] = fma(queries[r * stride + word], keys, scores[r]);
    }
};

struct BFloat16Scores {
    static int64_t words(int64_t head_dim) { return head_dim / 2; }
#if defined(LOIRE_AVX512_BF16)
    using Query = uint32_t;
    static int64_t queries(int64_t head_dim) { return head_dim / 2; }

    static INLINE void keep(const bfloat16* head, int64_t head_dim, uint32_t* query) {
        __builtin_memcpy(query, head, head_dim * sizeof(bfloat16));
    }

    template <int ROWS>
    static INLINE void link(const Vec16& keys, const uint32_t* queries, int64_t stride,
                            int64_t word, Vec16 (&scores)[ROWS]) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
            scores[r].part[0] = _mm512_dpbf16_ps(
                scores[r].part[0], (__m512bh)_mm512_set1_epi32(int(queries[r * stride + word])),
                (__m512bh)keys.part[0]);
    }
#else
    using Query = float;
    static int64_t queries(int64_t head_dim) { return head_dim; }

    static INLINE void keep(const bfloat16* head, int64_t head_dim, float* query) {
        for (int64_t i = 0; i < head_dim; i += 16)
            store_some(query + i, load_some(head + i, head_dim - i), head_dim - i);
    }

    template <int ROWS>
    static INLINE void link(const Vec16& keys, const float* queries, int64_t stride, int64_t word,
                            Vec16 (&scores)[ROWS]) {
        const Vec16 upper = upper_halves(keys), lower = lower_halves(keys);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const float* query = queries + r * stride + 2 * word;
            scores[r] = fma(query[1], upper, scores[r]);
            scores[r] = fma(query[0], lower, scores[r]);
        }
    }
#endif
};

template <typename Element>
struct ScoresOf {
    using Type = Float32Scores;
};
template <>
struct ScoresOf<bfloat16> {
    using Type = BFloat16Scores;
};

// Maxima, sums and weighted values of some rows; values are [rows][stride].
struct Partial {
    float* values;
    float* maxima;
    float* sums;
};

// What all steps of one piece know. Kept is what the cache keeps: Element, or codes with scales.
template <typename GivenElement, typename GivenKept>
struct Piece {
    using Element = GivenElement;
    using Kept = GivenKept;
    static constexpr bool SCALED = sizeof(Kept) == 1;

    const AttentionArguments& a;
    const AttentionPiece& piece;
    int64_t first_position;       // of the first token
    bool whole;                   // whether all tokens see all keys of the split
    int64_t group, rows, stride;  // query heads per kv head; rows; head_dim in whole vectors
    typename ScoresOf<Element>::Type::Query* queries;
    float* scores;  // [rows][SPLIT]
    float* tiles;   // KEYS_TOGETHER keys, transposed 16 by 16
    Element* widened;  // of codes: 16 keys, then SPLIT values, [stride] each
    // Where the keys and values of a split lie; nothing is set at first.
    struct Located {
        Located() {}
        const Kept* keys[SPLIT];
        const Kept* kept_values[SPLIT];
        const Element* values[SPLIT];  // the same, widened if they are codes
        float key_scales[SPLIT];       // of codes
        float value_scales[SPLIT];
    } at;

    int64_t position(int64_t row) const { return first_position + row / group; }
    int64_t first_seen(int64_t position) const {
        return position < a.window ? 0 : position - a.window + 1;
    }
};

// Lines of vectors that are needed soon, fetched a few at a time while others are computed: blocks
// are too short, and lie anywhere, so that the processor's own prefetching falls behind, and many
// fetches at once would hold up what follows them.
template <typename Kept>
class Fetching {
  public:
    Fetching(const Kept* const* vectors, int64_t count, int64_t head_dim)
        : next_(vectors), end_(vectors + count), head_dim_(head_dim) {}

    INLINE void lines(int64_t count) {
        for (; count > 0 && next_ < end_; --count) {
            __builtin_prefetch(*next_ + dimension_);
            dimension_ += 64 / int64_t(sizeof(Kept));
            if (dimension_ >= head_dim_) dimension_ = 0, ++next_;
        }
    }

    void rest() {
        while (next_ < end_) lines(1);
    }

  private:
    const Kept* const* next_;
    const Kept* const* end_;
    const int64_t head_dim_;
    int64_t dimension_ = 0;
};

// a = minus infinity for lanes outside [first, last].
INLINE Vec16 keep_lanes(const Vec16& value, int64_t first, int64_t last) {
    Vec16 result;
    EACH_PART {
        Ints lane;
        for (int i = 0; i < LANES; ++i) lane[i] = p * LANES + i;
        const Ints low = Ints{} + int32_t(first < 0 ? 0 : first > 16 ? 16 : first);
        const Ints high = Ints{} + int32_t(last < -1 ? -1 : last > 15 ? 15 : last);
        const Ints kept = (lane >= low) & (lane <= high);
        result.part[p] = kept ? value.part[p] : (Floats{} - __builtin_inff());
    }
    return result;
}

// Scores of ROWS rows and the keys [base + key, + KEYS_TOGETHER).
template <int ROWS, typename Piece>
void score_rows(const Piece& piece, int64_t row, int64_t base, int64_t key,
                Fetching<typename Piece::Kept>& fetching) {
    using Scores = typename ScoresOf<typename Piece::Element>::Type;
    const auto& a = piece.a;
    const int64_t words = Scores::words(a.head_dim), stride = Scores::queries(a.head_dim);
    const auto* queries = piece.queries + row * stride;
    Vec16 scores[TILES_TOGETHER][ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int t = 0; t < TILES_TOGETHER; ++t) scores[t][r] = zero();
    for (int64_t w = 0; w < words; ++w) {
        fetching.lines(LINES_PER_WORD);
#pragma GCC unroll 2
        for (int t = 0; t < TILES_TOGETHER; ++t)
            Scores::template link<ROWS>(load(piece.tiles + (t * words + w) * 16), queries, stride,
                                        w, scores[t]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        const int64_t position = piece.position(row + r);
        const int64_t first = piece.first_seen(position);
#pragma GCC unroll 2
        for (int t = 0; t < TILES_TOGETHER; ++t) {
            Vec16 score = scores[t][r] * broadcast(a.scale);
            if constexpr (Piece::SCALED)
                score = score * load(piece.at.key_scales + key + t * 16);
            if (a.softcap != 0.0f) {
                const Vec16 one = broadcast(1.0f), two = broadcast(2.0f);
                const Vec16 power = exponential(score * broadcast(2.0f / a.softcap));
                score = broadcast(a.softcap) * (one - two / (power + one));
            }
            const int64_t here = base + key + t * 16;
            if (!piece.whole && (here < first || here + 15 > position))
                score = keep_lanes(score, first - here, position - here);
            store(piece.scores + (row + r) * SPLIT + key + t * 16, score);
        }
    }
}

// Weights lie where the scores were, in the type of the values. Keeps 16 of them; what was kept.
INLINE Vec16 keep_weights(float* weights, int64_t key, const Vec16& given, float) {
    store(weights + key, given);
    return given;
}

INLINE Vec16 keep_weights(float* weights, int64_t key, const Vec16& given, bfloat16) {
    bfloat16* kept = reinterpret_cast<bfloat16*>(weights) + key;
#if defined(LOIRE_AVX512_BF16)
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(given.part[0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(kept), rounded);
    return Vec16{{(Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16)}};
#else
    store(kept, given);
    return load(kept);
#endif
}

INLINE float weight_at(const float* weights, int64_t key, float) { return weights[key]; }

INLINE float weight_at(const float* weights, int64_t key, bfloat16) {
    const uint32_t bits = uint32_t(reinterpret_cast<const bfloat16*>(weights)[key].bits) << 16;
    float value;
    __builtin_memcpy(&value, &bits, sizeof(value));
    return value;
}

// values[row][d] = sum over the pairs of keys [first, last) of scores[row][key] * value[key][d], for
// VECTORS * 16 dimensions.
template <int ROWS, int VECTORS, bool WHOLE, typename Piece>
INLINE void weigh_values(const Piece& piece, int64_t row, int64_t first, int64_t last,
                         int64_t dimension, float* target) {
    using Element = typename Piece::Element;
    Vec16 sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = zero();
    const float* weights = piece.scores + row * SPLIT;
    for (int64_t pair = first; pair < last; pair += 2)
#pragma GCC unroll 2
        for (int64_t key = pair + 1; key >= pair; --key) {
            const Element* value = piece.at.values[key] + dimension;
            Vec16 wide[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v)
                wide[v] = WHOLE
                              ? load(value + 16 * v)
                              : load_some(value + 16 * v, piece.a.head_dim - dimension - 16 * v);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const Vec16 weight = broadcast(weight_at(weights + r * SPLIT, key, Element{}));
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v) sums[r][v] = fma(weight, wide[v], sums[r][v]);
            }
        }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v)
            store(target + (row + r) * piece.stride + dimension + 16 * v, sums[r][v]);
}

#if defined(LOIRE_AVX512_BF16)
// The same with two keys per instruction. The pairs of 32 dimensions lie in two registers: of each
// eight dimensions the first four in one, the others in the other.
template <int ROWS, int VECTORS, bool WHOLE, typename Piece>
INLINE void weigh_pairs(const Piece& piece, int64_t row, int64_t first, int64_t last,
                        int64_t dimension, float* target) {
    static_assert(VECTORS % 2 == 0);
    __m512 sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = _mm512_setzero_ps();
    const int64_t left = piece.a.head_dim - dimension;
    const __mmask32 mask = left >= 32 ? ~0u : (1u << left) - 1;
    const float* weights = piece.scores + row * SPLIT;
    for (int64_t key = first; key < last; key += 2) {
        if (!Piece::SCALED && key + VALUES_AHEAD < last)
#pragma GCC unroll 4
            for (int line = 0; line < VECTORS; ++line)  // (two of each key)
                __builtin_prefetch(piece.at.values[key + VALUES_AHEAD + line % 2] + dimension +
                                   line / 2 * 32);
        const bfloat16* earlier = piece.at.values[key] + dimension;
        const bfloat16* later = piece.at.values[key + 1] + dimension;
        __m512bh pairs[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v += 2) {
            const __m512i x = WHOLE ? _mm512_loadu_si512(earlier + 16 * v)
                                    : _mm512_maskz_loadu_epi16(mask, earlier);
            const __m512i y = WHOLE ? _mm512_loadu_si512(later + 16 * v)
                                    : _mm512_maskz_loadu_epi16(mask, later);
            pairs[v] = (__m512bh)_mm512_unpacklo_epi16(x, y);
            pairs[v + 1] = (__m512bh)_mm512_unpackhi_epi16(x, y);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            int32_t two;
            __builtin_memcpy(&two, reinterpret_cast<const bfloat16*>(weights + r * SPLIT) + key, 4);
            const auto weight = (__m512bh)_mm512_set1_epi32(two);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v)
                sums[r][v] = _mm512_dpbf16_ps(sums[r][v], weight, pairs[v]);
        }
    }
    const __m512i lower = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(8));
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v += 2) {
            float* out = target + (row + r) * piece.stride + dimension + 16 * v;
            _mm512_storeu_ps(out, _mm512_permutex2var_ps(sums[r][v], lower, sums[r][v + 1]));
            if (WHOLE || left > 16)
                _mm512_storeu_ps(out + 16,
                                 _mm512_permutex2var_ps(sums[r][v], upper, sums[r][v + 1]));
        }
}

#endif

template <int ROWS, typename Piece>
void weigh_all(const Piece& piece, int64_t row, int64_t first, int64_t last, float* target) {
    const int64_t dim = piece.a.head_dim;
    int64_t d = 0;
#if defined(LOIRE_AVX512_BF16)
    if constexpr (sizeof(typename Piece::Element) == 2) {
        for (; d + 64 <= dim; d += 64)
            weigh_pairs<ROWS, 4, true>(piece, row, first, last, d, target);
        for (; d + 32 <= dim; d += 32)
            weigh_pairs<ROWS, 2, true>(piece, row, first, last, d, target);
        if (d < dim) weigh_pairs<ROWS, 2, false>(piece, row, first, last, d, target);
        return;
    }
#endif
    for (; d + 16 * VECTORS_TOGETHER <= dim; d += 16 * VECTORS_TOGETHER)
        weigh_values<ROWS, VECTORS_TOGETHER, true>(piece, row, first, last, d, target);
    for (; d + 16 <= dim; d += 16)
        weigh_values<ROWS, 1, true>(piece, row, first, last, d, target);
    if (d < dim) weigh_values<ROWS, 1, false>(piece, row, first, last, d, target);
}

// Softmax of ROWS rows over one split and their weighted values.
template <int ROWS, typename Piece>
void finish_rows(const Piece& piece, int64_t row, int64_t first, int64_t last,
                 const Partial& out) {
    using Element = typename Piece::Element;
    for (int64_t r = row; r < row + ROWS; ++r) {
        float* scores = piece.scores + r * SPLIT;
        const int64_t start = first / 16 * 16;
        Vec16 high = broadcast(-__builtin_inff());
        for (int64_t k = start; k < last; k += 16) high = maximum(high, load(scores + k));
        const float most = largest(high);
        const Vec16 reference = broadcast(most == -__builtin_inff() ? 0.0f : most);
        Vec16 total = zero();
        for (int64_t k = start; k < last; k += 16) {
            const Vec16 weight = exponential(load(scores + k) - reference);
            if constexpr (Piece::SCALED) {
                keep_weights(scores, k, weight * load(piece.at.value_scales + k), Element{});
                total = total + weight;
            } else {
                total = total + keep_weights(scores, k, weight, Element{});
            }
        }
        out.maxima[r] = most;
        out.sums[r] = sum(total);
    }
    weigh_all<ROWS>(piece, row, first & ~int64_t(1), last, out.values);
}

// Rows [row, row + ROWS) see keys [first, last) of the split, together.
struct Seen {
    int64_t first, last;

    template <typename Piece>
    Seen(const Piece& piece, int64_t row, int64_t rows, int64_t base)
        : first(piece.first_seen(piece.position(row)) - base),
          last(piece.position(row + rows - 1) + 1 - base) {
        if (piece.whole || first < 0) first = 0;
        if (piece.whole || last > SPLIT) last = SPLIT;
    }
};

// Where keys and values [start, end) of the split lie; those outside of all are zeros.
template <typename Piece>
INLINE void locate(Piece& piece, const Seen& all, int64_t base, int64_t start, int64_t end,
                   const char* zeros) {
    using Element = typename Piece::Element;
    using Kept = typename Piece::Kept;
    const auto& a = piece.a;
    auto& at = piece.at;
    const auto set_nothing = [&](int64_t key) {
        at.keys[key] = at.kept_values[key] = reinterpret_cast<const Kept*>(zeros);
        at.values[key] = reinterpret_cast<const Element*>(zeros);
        at.key_scales[key] = at.value_scales[key] = 0.0f;
    };
    for (int64_t key = start; key < all.first; ++key) set_nothing(key);
    const int32_t* block =
        a.block_tables + piece.piece.row * a.table_size + (base + all.first) / a.block_size;
    int64_t offset = (base + all.first) % a.block_size;
    const auto first_slot = [&](int32_t block) {
        return (int64_t(block) * a.kv_heads + piece.piece.kv_head) * a.block_size;
    };
    if constexpr (Piece::SCALED) {  // all of them at once, not one after another
        const int64_t blocks = (offset + all.last - all.first + a.block_size - 1) / a.block_size;
        for (int64_t i = 0; i < blocks; ++i)
            for (int64_t line = 0; line < a.block_size; line += 16) {
                __builtin_prefetch(a.key_scales + first_slot(block[i]) + line);
                __builtin_prefetch(a.value_scales + first_slot(block[i]) + line);
            }
    }
    for (int64_t key = all.first; key < all.last; ++block, offset = 0) {
        int64_t slot = first_slot(*block) + offset;
        for (; offset < a.block_size && key < all.last; ++offset, ++slot, ++key) {
            at.keys[key] = static_cast<const Kept*>(a.keys) + slot * a.head_dim;
            at.kept_values[key] = static_cast<const Kept*>(a.values) + slot * a.head_dim;
            if constexpr (Piece::SCALED) {
                at.key_scales[key] = a.key_scales[slot];
                at.value_scales[key] = a.value_scales[slot];
                at.values[key] = piece.widened + (16 + key) * piece.stride;
            } else {
                at.values[key] = at.kept_values[key];
            }
        }
    }
    for (int64_t key = all.last; key < end; ++key) set_nothing(key);
}

// Sixteen keys into a tile.
template <typename Piece>
INLINE void transpose_keys(const Piece& piece, int64_t key, int64_t words, float* tile) {
    if constexpr (Piece::SCALED) {
        const char* rows[16];
        for (int i = 0; i < 16; ++i) {
            auto* row = piece.widened + i * piece.stride;
            widen(piece.at.keys[key + i], piece.a.head_dim, row);
            rows[i] = reinterpret_cast<const char*>(row);
        }
        transpose(rows, words, tile);
    } else {
        transpose(reinterpret_cast<const char* const*>(piece.at.keys + key), words, tile);
    }
}

template <typename Piece>
void compute_split(Piece& piece, int64_t split, const char* zeros, const Partial& out) {
    const auto& a = piece.a;
    const int64_t base = split * SPLIT;
    const Seen all(piece, 0, piece.rows, base);
    const int64_t start = all.first / KEYS_TOGETHER * KEYS_TOGETHER;
    const int64_t end = (all.last + KEYS_TOGETHER - 1) / KEYS_TOGETHER * KEYS_TOGETHER;
    locate(piece, all, base, start, end, zeros);
    const int64_t words = ScoresOf<typename Piece::Element>::Type::words(a.head_dim);
    using Kept = typename Piece::Kept;
    // Of those from `first` on that are before `last`, so many.
    const auto fetch = [&](const Kept* const* vectors, int64_t first, int64_t last, int64_t count) {
        const int64_t there = first < last ? last - first : 0;
        return Fetching<Kept>(there > 0 ? vectors + first : vectors, there < count ? there : count,
                              a.head_dim);
    };
    fetch(piece.at.keys, start, end, KEYS_AHEAD).rest();
    for (int64_t key = start; key < end; key += KEYS_TOGETHER) {
        Fetching<Kept> fetching =
            key + KEYS_TOGETHER < end
                ? fetch(piece.at.keys, key + KEYS_AHEAD, end, KEYS_TOGETHER)
                : fetch(piece.at.kept_values, all.first, all.last, VALUES_AHEAD);
        for (int64_t t = 0; t < TILES_TOGETHER; ++t)
            transpose_keys(piece, key + t * 16, words, piece.tiles + t * words * 16);
        for_rows<ROWS_TOGETHER>(piece.rows, [&](auto count, int64_t row) {
            const Seen seen(piece, row, count.value, base);
            if (key < seen.last && key + KEYS_TOGETHER > seen.first)
                score_rows<count.value>(piece, row, base, key, fetching);
        });
        fetching.rest();
    }
    if constexpr (Piece::SCALED)
        for (int64_t key = all.first; key < all.last; ++key) {
            if (key + VALUES_AHEAD < all.last)
                for (int64_t d = 0; d < a.head_dim; d += 64)
                    __builtin_prefetch(piece.at.kept_values[key + VALUES_AHEAD] + d);
            widen(piece.at.kept_values[key], a.head_dim,
                  piece.widened + (16 + key) * piece.stride);
        }
    for_rows<ROWS_TOGETHER>(piece.rows, [&](auto count, int64_t row) {
        const Seen seen(piece, row, count.value, base);
        finish_rows<count.value>(piece, row, seen.first, seen.last, out);
    });
}

// total = total and part, each relative to its own maximum, brought to the common one.
INLINE void fold(const Partial& total, const Partial& part, int64_t rows, int64_t stride) {
    for (int64_t r = 0; r < rows; ++r) {
        const float most =
            total.maxima[r] > part.maxima[r] ? total.maxima[r] : part.maxima[r];
        const Vec16 reference = broadcast(most == -__builtin_inff() ? 0.0f : most);
        const Vec16 old_scale = exponential(broadcast(total.maxima[r]) - reference);
        const Vec16 new_scale = exponential(broadcast(part.maxima[r]) - reference);
        float* values = total.values + r * stride;
        for (int64_t d = 0; d < stride; d += 16) {
            const Vec16 added = load(part.values + r * stride + d) * new_scale;
            store(values + d, fma(load(values + d), old_scale, added));
        }
        const Vec16 sums =
            fma(broadcast(total.sums[r]), old_scale, broadcast(part.sums[r]) * new_scale);
        total.sums[r] = sums.part[0][0];
        total.maxima[r] = most;
    }
}

// Copies rows of a partial result.
INLINE void copy(const Partial& target, const Partial& source, int64_t rows, int64_t stride) {
    __builtin_memcpy(target.values, source.values, rows * stride * sizeof(float));
    __builtin_memcpy(target.maxima, source.maxima, rows * sizeof(float));
    __builtin_memcpy(target.sums, source.sums, rows * sizeof(float));
}

template <typename Piece>
void keep_queries(const Piece& piece, const AttentionQueries& given, int64_t first_row) {
    using Element = typename Piece::Element;
    using Scores = typename ScoresOf<Element>::Type;
    const auto& a = piece.a;
    for (int64_t r = 0; r < given.tokens * piece.group; ++r) {
        const int64_t token = given.first_token + r / piece.group;
        const int64_t head = piece.piece.kv_head * piece.group + r % piece.group;
        const auto* query =
            static_cast<const Element*>(a.queries) + (token * a.heads + head) * a.head_dim;
        Scores::keep(query, a.head_dim,
                     piece.queries + (first_row + r) * Scores::queries(a.head_dim));
    }
}

template <typename Piece>
void write_result(const Piece& piece, const AttentionQueries& given, const Partial& total) {
    using Element = typename Piece::Element;
    const auto& a = piece.a;
    for (int64_t r = 0; r < given.tokens * piece.group; ++r) {
        const int64_t token = given.first_token + r / piece.group;
        const int64_t head = piece.piece.kv_head * piece.group + r % piece.group;
        Element* out = static_cast<Element*>(a.out) + (token * a.heads + head) * a.head_dim;
        const Vec16 divisor = broadcast(total.sums[r]);
        for (int64_t d = 0; d < a.head_dim; d += 16)
            store_some(out + d, load(total.values + r * piece.stride + d) / divisor,
                       a.head_dim - d);
    }
}

INLINE void clear(const Partial& total, int64_t rows, int64_t stride) {
    __builtin_memset(total.values, 0, rows * stride * sizeof(float));
    __builtin_memset(total.sums, 0, rows * sizeof(float));
    for (int64_t r = 0; r < rows; ++r) total.maxima[r] = -__builtin_inff();
}

template <typename Element, typename Kept>
void attention_piece(const void* untyped, int64_t index, Scratch& scratch) {
    using Query = typename ScoresOf<Element>::Type::Query;
    const auto& a = *static_cast<const AttentionArguments*>(untyped);
    const AttentionPiece& given = a.pieces[index];
    const AttentionMember* members = a.members + given.first_member;
    const int64_t group = a.heads / a.kv_heads, stride = (a.head_dim + 15) / 16 * 16;
    int64_t rows = 0;
    for (int32_t m = 0; m < given.members; ++m) rows += members[m].queries.tokens * group;

    // Scratch, in floats: scores, tiles, zeros, two sets of partial results, queries, widened codes.
    const int64_t tile_size = stride * KEYS_TOGETHER, partial_size = rows * (stride + 2);
    const int64_t widened_size = sizeof(Kept) == 1 ? (16 + SPLIT) * stride : 0;
    float* memory = reinterpret_cast<float*>(
        scratch.reserve((rows * SPLIT + tile_size + stride + 2 * partial_size + rows * stride +
                         widened_size) *
                        sizeof(float)));
    float* scores = memory;
    float* tiles = scores + rows * SPLIT;
    float* zeros = tiles + tile_size;
    float* total_memory = zeros + stride;
    float* part_memory = total_memory + partial_size;
    auto* queries = reinterpret_cast<Query*>(part_memory + partial_size);
    auto* widened = reinterpret_cast<Element*>(part_memory + partial_size + rows * stride);
    __builtin_memset(zeros, 0, stride * sizeof(float));
    const char* nothing = reinterpret_cast<const char*>(zeros);

    const AttentionQueries& first = members[0].queries;
    Piece<Element, Kept> piece{
        a,     given,   first.first_position, given.members > 1, group, rows, stride, queries,
        scores, tiles, widened, {}};
    const auto partial = [&](float* where, int64_t count) {
        return Partial{where, where + count * stride, where + count * (stride + 1)};
    };
    const Partial part = partial(part_memory, rows);
    int64_t row = 0;
    for (int32_t m = 0; m < given.members; ++m) {
        keep_queries(piece, members[m].queries, row);
        row += members[m].queries.tokens * group;
    }
    if (given.split < 0) {
        const Partial total = partial(total_memory, rows);
        clear(total, rows, stride);
        const int64_t last = (first.first_position + first.tokens - 1) / SPLIT;
        for (int64_t s = piece.first_seen(first.first_position) / SPLIT; s <= last; ++s) {
            compute_split(piece, s, nothing, part);
            fold(total, part, rows, stride);
        }
        return write_result(piece, first, total);
    }
    compute_split(piece, given.split, nothing, part);
    row = 0;
    for (int32_t m = 0; m < given.members; ++m) {
        const AttentionMember& member = members[m];
        const AttentionMerge& merge = a.merges[member.merge];
        const int64_t count = member.queries.tokens * group;
        const auto slot = [&](int64_t split) {
            return partial(a.partials + (merge.first_partial + split - merge.first_split) *
                                            a.partial_floats,
                           count);
        };
        copy(slot(given.split),
             {part.values + row * stride, part.maxima + row, part.sums + row}, count, stride);
        row += count;
        if (__atomic_sub_fetch(a.unfinished + member.merge, 1, __ATOMIC_ACQ_REL) != 0) continue;
        const Partial total = partial(total_memory, count);
        clear(total, count, stride);
        for (int64_t s = merge.first_split; s < merge.first_split + merge.splits; ++s)
            fold(total, slot(s), count, stride);
        write_result(piece, member.queries, total);
    }
}
