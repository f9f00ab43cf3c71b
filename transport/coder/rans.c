/* Interleaved range coding with asymmetric numeral systems (rANS) over frozen integer tables.
 *
 * The byte format is written down in docs/wire-format.md; reference.py is the same coder in plain Python and must give
 * the same bytes. Source of the method: J. Duda, "Asymmetric numeral systems" (arXiv 1311.2540); interleaving and the
 * exact reciprocal: F. Giesen, "Interleaved entropy coders" (arXiv 1402.3392).
 *
 * A state x is 32 bits wide and lies in [2^16, 2^32) between symbols; it is renormalised by 16-bit words. Symbol number
 * j of a channel belongs to lane j mod lanes, so that `lanes` independent chains of arithmetic overlap in the CPU.
 *
 * A table splits 2^precision slots among the symbols of one channel. A symbol without a slot of its own is *escaped*:
 * the escape's slot is coded, then the symbol's rank among the escaped ones in raw bits. Every symbol is codable.
 *
 * Safety: nothing here trusts its input. Tables are checked when they are built, symbols while they are encoded, and the
 * decoder reads no byte outside its payload and writes exactly the symbols that it was asked for, whatever the bytes are.
 * No global state, no I/O: any number of threads may use the same tables at once.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__) || defined(__clang__)
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))
#else
#define LIKELY(x) (x)
#define UNLIKELY(x) (x)
#define INLINE static inline
#define EXPORT
#endif

/* Raised whenever a function's arguments or meaning change; native.py refuses a library of another number. */
#define ABI_VERSION 1

#define LOWEST_STATE 65536u
#define MAX_LANES 4
#define MIN_PRECISION 8
#define MAX_PRECISION 15
#define MAX_ALPHABET 256

enum status {
    OK = 0,
    SYMBOL_OUTSIDE_ALPHABET = -1,
    PAYLOAD_TRUNCATED = -2,
    PAYLOAD_TRAILING = -3,
    PAYLOAD_INVALID = -4,
    OUTPUT_FULL = -5,
    BAD_ARGUMENT = -6
};

/* x -> (x / f) * 2^precision + x % f + start, as x + bias + (x / f) * complement, x / f by multiplication. */
typedef struct {
    uint64_t reciprocal;
    uint32_t bias;
    uint16_t frequency; /* 0: the symbol is escaped */
    uint16_t complement;
} encode_entry;

typedef struct {
    uint16_t frequency;
    uint16_t start;
    uint8_t symbol;
    uint8_t escape;
} decode_entry;

typedef struct {
    uint32_t precision;
    uint32_t alphabet;
    uint32_t count;
    encode_entry *encode;  /* [count][alphabet + 1]; the last is the escape */
    uint8_t *rank;         /* [count][alphabet]: an escaped symbol's rank */
    decode_entry *decode;  /* [count][256] */
    uint8_t *slots;        /* [count][2^precision]: slot -> index into decode */
    uint8_t *escaped;      /* [count][256]: rank -> symbol */
    uint8_t *rank_bits;    /* [count] */
    uint16_t *escaped_count; /* [count] */
} tables;

EXPORT int32_t narrowcast_rans_abi(void) { return ABI_VERSION; }

EXPORT void narrowcast_rans_free(tables *t) {
    if (!t) return;
    free(t->encode);
    free(t->rank);
    free(t->decode);
    free(t->slots);
    free(t->escaped);
    free(t->rank_bits);
    free(t->escaped_count);
    free(t);
}

static void fill_encode_entry(encode_entry *e, uint32_t frequency, uint32_t start, uint32_t precision) {
    const uint32_t total = 1u << precision;
    e->frequency = (uint16_t)frequency;
    e->complement = (uint16_t)(total - frequency);
    if (frequency == 1) {
        /* 2^64 does not fit; 2^64 - 1 gives x - 1 for x / 1, which the bias makes good. */
        e->reciprocal = UINT64_MAX;
        e->bias = start + total - 1;
    } else {
        e->reciprocal = UINT64_MAX / frequency + 1;
        e->bias = start;
    }
}

/* Builds table number `i`; 0 where its frequencies do not fill 2^precision exactly or leave a symbol without a code. */
static int build_table(tables *t, uint32_t i, const uint16_t *frequencies, uint32_t escape) {
    const uint32_t total = 1u << t->precision;
    encode_entry *encode = t->encode + (size_t)i * (t->alphabet + 1);
    decode_entry *decode = t->decode + (size_t)i * 256;
    uint8_t *slots = t->slots + ((size_t)i << t->precision);
    uint32_t start = 0, used = 0, escaped = 0, bits = 0;
    for (uint32_t s = 0; s <= t->alphabet; s++) {
        const uint32_t f = s < t->alphabet ? frequencies[s] : escape;
        if (f == 0) {
            if (s < t->alphabet) {
                t->rank[(size_t)i * t->alphabet + s] = (uint8_t)escaped;
                t->escaped[(size_t)i * 256 + escaped++] = (uint8_t)s;
            }
            encode[s].frequency = 0;
            continue;
        }
        if (f > total - start || used > 255) return 0;
        fill_encode_entry(&encode[s], f, start, t->precision);
        decode[used].frequency = (uint16_t)f;
        decode[used].start = (uint16_t)start;
        decode[used].symbol = (uint8_t)s;
        decode[used].escape = s == t->alphabet;
        memset(slots + start, (int)used, f);
        start += f;
        used++;
    }
    while ((1u << bits) < escaped) bits++;
    t->rank_bits[i] = (uint8_t)bits;
    t->escaped_count[i] = (uint16_t)escaped;
    return start == total && (escaped > 0) == (escape > 0);
}

/* frequencies: uint16 [count][alphabet], 0 for an escaped symbol; escapes: uint16 [count], 0 where none is escaped.
 * NULL where they are no valid tables or memory is short. */
EXPORT tables *narrowcast_rans_new(uint32_t precision, uint32_t alphabet, uint32_t count, const uint16_t *frequencies,
                                   const uint16_t *escapes) {
    if (precision < MIN_PRECISION || precision > MAX_PRECISION || alphabet < 1 || alphabet > MAX_ALPHABET || count < 1)
        return NULL;
    tables *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    t->precision = precision;
    t->alphabet = alphabet;
    t->count = count;
    t->encode = calloc(count, sizeof(encode_entry) * (alphabet + 1));
    t->rank = calloc(count, alphabet);
    t->decode = calloc(count, sizeof(decode_entry) * 256);
    t->slots = calloc(count, (size_t)1 << precision);
    t->escaped = calloc(count, 256);
    t->rank_bits = calloc(count, 1);
    t->escaped_count = calloc(count, sizeof(uint16_t));
    int good = t->encode && t->rank && t->decode && t->slots && t->escaped && t->rank_bits && t->escaped_count;
    for (uint32_t i = 0; good && i < count; i++)
        good = build_table(t, i, frequencies + (size_t)i * alphabet, escapes[i]);
    if (good) return t;
    narrowcast_rans_free(t);
    return NULL;
}

INLINE void store_word(uint8_t *to, uint32_t x) {
    to[0] = (uint8_t)x;
    to[1] = (uint8_t)(x >> 8);
}

INLINE uint32_t load_word(const uint8_t *from) { return (uint32_t)from[0] | (uint32_t)from[1] << 8; }

INLINE uint32_t high_product(uint32_t x, uint64_t y) {
#ifdef __SIZEOF_INT128__
    return (uint32_t)(((unsigned __int128)x * y) >> 64);
#else
    return (uint32_t)(((uint64_t)x * (y >> 32) + (((uint64_t)x * (uint32_t)y) >> 32)) >> 32);
#endif
}

/* One step of the encoder, which runs backwards: words are written downwards from *out. */
INLINE uint32_t put(uint32_t x, const encode_entry *e, uint8_t **out, uint32_t precision) {
    const uint32_t full = (uint64_t)x >= (uint64_t)e->frequency << (32 - precision);
    store_word(*out - 2, x);
    *out -= 2 * full;
    x >>= 16 * full;
    return x + e->bias + high_product(x, e->reciprocal) * e->complement;
}

/* `bits` raw bits: a symbol of frequency 2^(precision - bits). */
INLINE uint32_t put_raw(uint32_t x, uint32_t value, uint32_t bits, uint8_t **out) {
    if (x >> (32 - bits)) {
        *out -= 2;
        store_word(*out, x);
        x >>= 16;
    }
    return x << bits | value;
}

typedef struct {
    const encode_entry *entries;
    const uint8_t *rank;
    uint32_t alphabet, precision, rank_bits;
} encode_table;

INLINE uint32_t put_symbol(uint32_t x, uint32_t symbol, const encode_table *t, uint8_t **out) {
    const encode_entry *e = &t->entries[symbol];
    if (UNLIKELY(e->frequency == 0)) {
        if (t->rank_bits) x = put_raw(x, t->rank[symbol], t->rank_bits, out);
        e = &t->entries[t->alphabet];
    }
    return put(x, e, out, t->precision);
}

/* One frame, written downwards so that it ends at `end`; returns its first byte, or NULL where a symbol lies outside
 * the alphabet. The caller gives 4 * lanes + 4 bytes per symbol, which no frame exceeds. */
INLINE uint8_t *encode_frame(const tables *t, uint32_t first, uint32_t channels, uint32_t per_channel,
                             const uint32_t lanes, const uint8_t *symbols, uint8_t *end) {
    uint32_t x[MAX_LANES] = {LOWEST_STATE, LOWEST_STATE, LOWEST_STATE, LOWEST_STATE};
    uint8_t *out = end;
    const uint32_t whole = per_channel - per_channel % lanes;
    for (uint32_t c = channels; c-- > 0;) {
        const uint8_t *s = symbols + (size_t)c * per_channel;
        const size_t index = first + c;
        const encode_table table = {t->encode + index * (t->alphabet + 1), t->rank + index * t->alphabet, t->alphabet,
                                    t->precision, t->rank_bits[index]};
        uint8_t largest = 0;
        for (uint32_t j = 0; j < per_channel; j++) largest = s[j] > largest ? s[j] : largest;
        if (per_channel && largest >= t->alphabet) return NULL;
        for (uint32_t j = per_channel; j-- > whole;) x[j - whole] = put_symbol(x[j - whole], s[j], &table, &out);
        for (uint32_t j = whole; j > 0; j -= lanes)
            for (uint32_t lane = lanes; lane-- > 0;)
                x[lane] = put_symbol(x[lane], s[j - lanes + lane], &table, &out);
    }
    for (uint32_t lane = lanes; lane-- > 0;) {
        out -= 4;
        store_word(out, x[lane]);
        store_word(out + 2, x[lane] >> 16);
    }
    return out;
}

typedef struct {
    const decode_entry *entries;
    const uint8_t *slots, *escaped;
    uint32_t precision, rank_bits, escaped_count;
} decode_table;

INLINE uint32_t refill(uint32_t x, const uint8_t **in) {
    const uint32_t low = x < LOWEST_STATE;
    x = x << (16 * low) | (load_word(*in) & (0u - low));
    *in += 2 * low;
    return x;
}

INLINE uint32_t get_rank(uint32_t x, const decode_table *t, uint8_t *symbol, const uint8_t **in, int *invalid) {
    const uint32_t rank = x & ((1u << t->rank_bits) - 1);
    *invalid |= rank >= t->escaped_count;
    *symbol = t->escaped[rank];
    return t->rank_bits ? refill(x >> t->rank_bits, in) : x;
}

/* One symbol. Reads at most two words from *in: the caller makes sure that they are there. */
INLINE uint32_t get_symbol(uint32_t x, const decode_table *t, uint8_t *symbol, const uint8_t **in, int *invalid) {
    const uint32_t slot = x & ((1u << t->precision) - 1);
    const decode_entry *e = &t->entries[t->slots[slot]];
    x = refill(e->frequency * (x >> t->precision) + slot - e->start, in);
    *symbol = e->symbol;
    if (UNLIKELY(e->escape)) x = get_rank(x, t, symbol, in, invalid);
    return x;
}

/* The same near the payload's end: reads zeros behind it and reports that it did. */
INLINE uint32_t get_symbol_near_end(uint32_t x, const decode_table *t, uint8_t *symbol, const uint8_t **in,
                                    const uint8_t *end, int *invalid, int *truncated) {
    uint8_t words[4] = {0, 0, 0, 0};
    const size_t left = (size_t)(end - *in);
    const uint8_t *from = words;
    memcpy(words, *in, left < 4 ? left : 4);
    x = get_symbol(x, t, symbol, &from, invalid);
    const size_t taken = (size_t)(from - words);
    *truncated |= taken > left;
    *in += taken < left ? taken : left;
    return x;
}

INLINE int decode_frame(const tables *t, uint32_t first, uint32_t channels, uint32_t per_channel, const uint32_t lanes,
                        const uint8_t *payload, size_t size, uint8_t *symbols) {
    uint32_t x[MAX_LANES] = {LOWEST_STATE, LOWEST_STATE, LOWEST_STATE, LOWEST_STATE};
    const uint8_t *in = payload, *const end = payload + size;
    int invalid = 0, truncated = 0;
    if (size < 4 * lanes) return PAYLOAD_TRUNCATED;
    for (uint32_t lane = 0; lane < lanes; lane++, in += 4) {
        x[lane] = load_word(in) | load_word(in + 2) << 16;
        if (x[lane] < LOWEST_STATE) return PAYLOAD_INVALID;
    }
    for (uint32_t c = 0; c < channels; c++) {
        uint8_t *s = symbols + (size_t)c * per_channel;
        const size_t index = first + c;
        const decode_table table = {t->decode + index * 256, t->slots + (index << t->precision),
                                    t->escaped + index * 256, t->precision, t->rank_bits[index],
                                    t->escaped_count[index]};
        uint32_t j = 0;
        for (; j + lanes <= per_channel && (size_t)(end - in) >= 4 * lanes; j += lanes)
            for (uint32_t lane = 0; lane < lanes; lane++) x[lane] = get_symbol(x[lane], &table, s + j + lane, &in, &invalid);
        for (; j < per_channel; j++)
            x[j % lanes] = get_symbol_near_end(x[j % lanes], &table, s + j, &in, end, &invalid, &truncated);
        if (invalid) return PAYLOAD_INVALID;
        if (truncated) return PAYLOAD_TRUNCATED;
    }
    if (in != end) return PAYLOAD_TRAILING;
    for (uint32_t lane = 0; lane < lanes; lane++)
        if (x[lane] != LOWEST_STATE) return PAYLOAD_INVALID;
    return OK;
}

static int in_range(const tables *t, uint32_t first, uint32_t channels, uint32_t lanes) {
    return t && (lanes == 1 || lanes == 2 || lanes == 4) && first <= t->count && channels <= t->count - first;
}

/* Encodes `frames` frames of [channels][per_channel] symbols. Frame i uses tables first[i] .. first[i] + channels - 1
 * and goes to out + i * stride (stride >= 4 * lanes + 4 * channels * per_channel), its size to sizes[i]. */
EXPORT int32_t narrowcast_rans_encode(const tables *t, uint32_t frames, const uint32_t *first, uint32_t channels,
                                      uint32_t per_channel, uint32_t lanes, const uint8_t *symbols, uint8_t *out,
                                      uint64_t stride, uint64_t *sizes) {
    const size_t count = (size_t)channels * per_channel;
    if (stride < 4 * (uint64_t)lanes + 4 * (uint64_t)count) return OUTPUT_FULL;
    for (uint32_t i = 0; i < frames; i++) {
        const uint8_t *frame = symbols + i * count;
        uint8_t *begin = out + i * stride, *end = begin + stride, *at;
        if (!in_range(t, first[i], channels, lanes)) return BAD_ARGUMENT;
        /* A constant `lanes` lets the compiler unroll the loops over them. */
        if (lanes == 4)
            at = encode_frame(t, first[i], channels, per_channel, 4, frame, end);
        else if (lanes == 2)
            at = encode_frame(t, first[i], channels, per_channel, 2, frame, end);
        else
            at = encode_frame(t, first[i], channels, per_channel, 1, frame, end);
        if (!at) return SYMBOL_OUTSIDE_ALPHABET;
        sizes[i] = (uint64_t)(end - at);
        memmove(begin, at, (size_t)(end - at));
    }
    return OK;
}

/* Decodes `frames` payloads; payload i is bytes offsets[i] .. offsets[i + 1] of `payloads`. Frame i's symbols go to
 * symbols + i * channels * per_channel, its status to statuses[i]: a bad frame leaves the others alone. */
EXPORT int32_t narrowcast_rans_decode(const tables *t, uint32_t frames, const uint32_t *first, uint32_t channels,
                                      uint32_t per_channel, uint32_t lanes, const uint8_t *payloads,
                                      const uint64_t *offsets, uint8_t *symbols, int32_t *statuses) {
    const size_t count = (size_t)channels * per_channel;
    for (uint32_t i = 0; i < frames; i++) {
        const uint8_t *payload = payloads + offsets[i];
        uint8_t *frame = symbols + i * count;
        if (!in_range(t, first[i], channels, lanes) || offsets[i + 1] < offsets[i]) return BAD_ARGUMENT;
        const size_t size = (size_t)(offsets[i + 1] - offsets[i]);
        if (lanes == 4)
            statuses[i] = decode_frame(t, first[i], channels, per_channel, 4, payload, size, frame);
        else if (lanes == 2)
            statuses[i] = decode_frame(t, first[i], channels, per_channel, 2, payload, size, frame);
        else
            statuses[i] = decode_frame(t, first[i], channels, per_channel, 1, payload, size, frame);
    }
    return OK;
}
