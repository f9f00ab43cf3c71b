/* One step of rANS and what it needs: tables, the encoder's put, the decoder's get. rans.c codes frames with a table per
 * channel, context.c with a table per symbol; see rans.c for the method and its sources. */
#ifndef NARROWCAST_RANS_H
#define NARROWCAST_RANS_H

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
#define ABI_VERSION 3

#define LOWEST_STATE 65536u
#define MAX_LANES 4
#define MIN_PRECISION 8
#define MAX_PRECISION 12
#define MAX_ALPHABET 256
#define BUCKET_BITS 8
#define BUCKETS (1 << BUCKET_BITS)

enum status {
    OK = 0,
    SYMBOL_OUTSIDE_ALPHABET = -1,
    PAYLOAD_TRUNCATED = -2,
    PAYLOAD_TRAILING = -3,
    PAYLOAD_INVALID = -4,
    OUTPUT_FULL = -5,
    BAD_ARGUMENT = -6,
    OUT_OF_MEMORY = -7
};

/* x -> (x / f) * 2^precision + x % f + start, as x + bias + (x / f) * complement, x / f by multiplication. */
typedef struct {
    uint64_t reciprocal;
    uint32_t limit; /* the largest state that takes the symbol without giving up a word; 0: the symbol is escaped */
    uint16_t bias;
    uint16_t complement;
} encode_entry;

/* What decoding a slot does to the state; its symbol lies in an array beside, so that both stay in the first cache. The
 * escape's slots are the last ones of a table; there the symbol means nothing. */
typedef struct {
    uint16_t frequency;
    uint16_t offset; /* slot - start */
} decode_entry;

typedef struct {
    uint32_t precision;
    uint32_t alphabet;
    uint32_t count;
    encode_entry *encode;    /* [count][alphabet + 1]; the last is the escape */
    uint8_t *rank;           /* [count][alphabet]: an escaped symbol's rank */
    decode_entry *decode;    /* [count][2^precision] */
    uint8_t *symbol;         /* [count][2^precision] */
    uint16_t *starts;        /* [count][alphabet + 2]: first slots of the entries that have any, then 2^precision */
    uint8_t *owner;          /* [count][alphabet + 1]: those entries' symbols */
    uint8_t *bucket;         /* [count][BUCKETS]: which entry owns a bucket's first slot */
    uint8_t *escaped;        /* [count][256]: rank -> symbol */
    uint16_t *escape_start;  /* [count]: the escape's first slot; 2^precision where there is none */
    uint16_t *escaped_count; /* [count] */
    uint8_t *rank_bits;      /* [count] */
} tables;

INLINE void store_word(uint8_t *to, uint32_t x) {
    to[0] = (uint8_t)x;
    to[1] = (uint8_t)(x >> 8);
}

INLINE uint32_t load_word(const uint8_t *from) { return (uint32_t)from[0] | (uint32_t)from[1] << 8; }

INLINE uint64_t load_four_words(const uint8_t *from) {
    return (uint64_t)(load_word(from) | load_word(from + 2) << 16) | (uint64_t)(load_word(from + 4) | load_word(from + 6) << 16) << 32;
}

INLINE uint32_t high_product(uint32_t x, uint64_t y) {
#ifdef __SIZEOF_INT128__
    return (uint32_t)(((unsigned __int128)x * y) >> 64);
#else
    return (uint32_t)(((uint64_t)x * (y >> 32) + (((uint64_t)x * (uint32_t)y) >> 32)) >> 32);
#endif
}

/* One step of the encoder, which runs backwards: words are written downwards from *out. */
INLINE uint32_t put(uint32_t x, const encode_entry *e, uint8_t **out) {
    const uint32_t full = x > e->limit;
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
    uint32_t alphabet, rank_bits;
} encode_table;

INLINE uint32_t put_symbol(uint32_t x, uint32_t symbol, const encode_table *t, uint8_t **out) {
    const encode_entry *e = &t->entries[symbol];
    if (UNLIKELY(e->limit == 0)) {
        if (t->rank_bits) x = put_raw(x, t->rank[symbol], t->rank_bits, out);
        e = &t->entries[t->alphabet];
    }
    return put(x, e, out);
}

/* The encoder's final states, which the decoder starts with: a payload's first bytes. */
INLINE uint8_t *put_states(const uint32_t *x, const uint32_t lanes, uint8_t *out) {
    for (uint32_t lane = lanes; lane-- > 0;) {
        out -= 4;
        store_word(out, x[lane]);
        store_word(out + 2, x[lane] >> 16);
    }
    return out;
}

typedef struct {
    const decode_entry *entries;
    const uint8_t *symbols, *escaped;
    uint32_t escape_start, rank_bits, escaped_count;
} decode_table;

/* Where a frame's decoding is. */
typedef struct {
    uint32_t x[MAX_LANES];
    const uint8_t *in, *end;
    int invalid, truncated;
} decoder;

INLINE uint32_t step(uint32_t x, const decode_entry *e, uint32_t precision) {
    return e->frequency * (x >> precision) + e->offset;
}

/* Takes a word where a state is low; zeros behind the payload's end, which is noted. */
INLINE uint32_t refill(uint32_t x, decoder *d) {
    if (x >= LOWEST_STATE) return x;
    if (d->end - d->in < 2) {
        d->truncated = 1;
        return x << 16;
    }
    d->in += 2;
    return x << 16 | load_word(d->in - 2);
}

/* An escaped symbol's rank, behind its escape, as the symbol. */
INLINE uint8_t get_escaped(decoder *d, uint32_t *x, const decode_table *t) {
    const uint32_t rank = *x & ((1u << t->rank_bits) - 1);
    d->invalid |= rank >= t->escaped_count;
    if (t->rank_bits) *x = refill(*x >> t->rank_bits, d);
    return t->escaped[rank];
}

/* One symbol, whatever it is and wherever the payload ends. */
INLINE uint8_t get_symbol(decoder *d, uint32_t lane, const decode_table *t, uint32_t precision) {
    const uint32_t slot = d->x[lane] & ((1u << precision) - 1);
    uint32_t x = refill(step(d->x[lane], &t->entries[slot], precision), d);
    const uint8_t symbol = slot >= t->escape_start ? get_escaped(d, &x, t) : t->symbols[slot];
    d->x[lane] = x;
    return symbol;
}

INLINE int begin_decoding(decoder *d, const uint8_t *payload, size_t size, const uint32_t lanes) {
    *d = (decoder){{LOWEST_STATE, LOWEST_STATE, LOWEST_STATE, LOWEST_STATE}, payload, payload + size, 0, 0};
    if (size < 4 * lanes) return PAYLOAD_TRUNCATED;
    for (uint32_t lane = 0; lane < lanes; lane++, d->in += 4) {
        d->x[lane] = load_word(d->in) | load_word(d->in + 2) << 16;
        if (d->x[lane] < LOWEST_STATE) return PAYLOAD_INVALID;
    }
    return OK;
}

/* Whether the payload ended where its encoder began. */
INLINE int end_decoding(const decoder *d, const uint32_t lanes) {
    if (d->in != d->end) return PAYLOAD_TRAILING;
    for (uint32_t lane = 0; lane < lanes; lane++)
        if (d->x[lane] != LOWEST_STATE) return PAYLOAD_INVALID;
    return OK;
}

#endif
