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
#include "rans.h"

EXPORT int32_t narrowcast_rans_abi(void) { return ABI_VERSION; }

EXPORT void narrowcast_rans_free(tables *t) {
    if (!t) return;
    free(t->encode);
    free(t->rank);
    free(t->decode);
    free(t->symbol);
    free(t->starts);
    free(t->owner);
    free(t->bucket);
    free(t->escaped);
    free(t->escape_start);
    free(t->escaped_count);
    free(t->rank_bits);
    free(t);
}

static void fill_encode_entry(encode_entry *e, uint32_t frequency, uint32_t start, uint32_t precision) {
    const uint32_t total = 1u << precision;
    e->limit = (uint32_t)(((uint64_t)frequency << (32 - precision)) - 1);
    e->complement = (uint16_t)(total - frequency);
    if (frequency == 1) {
        /* 2^64 does not fit; 2^64 - 1 gives x - 1 for x / 1, which the bias makes good. */
        e->reciprocal = UINT64_MAX;
        e->bias = (uint16_t)(start + total - 1);
    } else {
        e->reciprocal = UINT64_MAX / frequency + 1;
        e->bias = (uint16_t)start;
    }
}

/* Builds table number `i`; 0 where its frequencies do not fill 2^precision exactly or leave a symbol without a code. */
static int build_table(tables *t, uint32_t i, const uint16_t *frequencies, uint32_t escape) {
    const uint32_t total = 1u << t->precision;
    encode_entry *encode = t->encode + (size_t)i * (t->alphabet + 1);
    const size_t slots = (size_t)i << t->precision;
    uint16_t *starts = t->starts + (size_t)i * (t->alphabet + 2);
    uint8_t *owner = t->owner + (size_t)i * (t->alphabet + 1), *bucket = t->bucket + (size_t)i * BUCKETS;
    const uint32_t width = t->precision - BUCKET_BITS;
    uint32_t start = 0, escaped = 0, bits = 0, entries = 0;
    for (uint32_t s = 0; s <= t->alphabet; s++) {
        const uint32_t f = s < t->alphabet ? frequencies[s] : escape;
        if (s == t->alphabet) t->escape_start[i] = (uint16_t)start;
        if (f == 0) {
            if (s < t->alphabet) {
                t->rank[(size_t)i * t->alphabet + s] = (uint8_t)escaped;
                t->escaped[(size_t)i * 256 + escaped++] = (uint8_t)s;
            }
            continue; /* calloc left limit 0 */
        }
        if (f > total - start) return 0;
        fill_encode_entry(&encode[s], f, start, t->precision);
        for (uint32_t k = 0; k < f; k++) t->decode[slots + start + k] = (decode_entry){(uint16_t)f, (uint16_t)k};
        memset(t->symbol + slots + start, (int)(s & 255), f);
        /* At most 256 entries have slots: where there is an escape, some symbol has none. */
        for (uint32_t b = (start + (1u << width) - 1) >> width; b << width < start + f; b++) bucket[b] = (uint8_t)entries;
        starts[entries] = (uint16_t)start;
        owner[entries++] = (uint8_t)s;
        start += f;
    }
    starts[entries] = (uint16_t)start;
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
    t->decode = calloc(count, sizeof(decode_entry) << precision);
    t->symbol = calloc(count, (size_t)1 << precision);
    t->starts = calloc(count, sizeof(uint16_t) * (alphabet + 2));
    t->owner = calloc(count, alphabet + 1);
    t->bucket = calloc(count, BUCKETS);
    t->escaped = calloc(count, 256);
    t->escape_start = calloc(count, sizeof(uint16_t));
    t->escaped_count = calloc(count, sizeof(uint16_t));
    t->rank_bits = calloc(count, 1);
    int good = t->encode && t->rank && t->decode && t->symbol && t->starts && t->owner && t->bucket && t->escaped &&
               t->escape_start && t->escaped_count && t->rank_bits;
    for (uint32_t i = 0; good && i < count; i++)
        good = build_table(t, i, frequencies + (size_t)i * alphabet, escapes[i]);
    if (good) return t;
    narrowcast_rans_free(t);
    return NULL;
}

/* A channel's whole groups of `lanes` symbols, last group first. States live in `local`, indexed by constants only once
 * the loops are unrolled, so that they stay in registers. */
INLINE uint8_t *encode_groups(uint32_t *x, const uint8_t *s, uint32_t whole, const uint32_t lanes, const encode_table *t,
                              uint8_t *out) {
    uint32_t local[MAX_LANES];
    memcpy(local, x, sizeof local);
    for (uint32_t j = whole; j > 0; j -= lanes)
        for (uint32_t lane = lanes; lane-- > 0;)
            local[lane] = put_symbol(local[lane], s[j - lanes + lane], t, &out);
    memcpy(x, local, sizeof local);
    return out;
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
                                    t->rank_bits[index]};
        uint8_t largest = 0;
        for (uint32_t j = 0; j < per_channel; j++) largest = s[j] > largest ? s[j] : largest;
        if (per_channel && largest >= t->alphabet) return NULL;
        for (uint32_t j = per_channel; j-- > whole;) x[j - whole] = put_symbol(x[j - whole], s[j], &table, &out);
        out = encode_groups(x, s, whole, lanes, &table, out);
    }
    return put_states(x, lanes, out);
}

/* As many whole groups of `lanes` symbols of a channel as lie well inside the payload; returns how many symbols.
 *
 * Within a group the lanes do not wait for each other's words: all that the group can take are loaded once, ahead, and a
 * lane that takes one shifts them on. Both outcomes are computed and one is selected, since a branch would be a guess. A
 * group with an escape is left to get_symbol. */
INLINE uint32_t decode_groups(decoder *d, uint8_t *s, uint32_t per_channel, const uint32_t lanes, const decode_table *t,
                              const uint32_t precision) {
    const uint32_t mask = (1u << precision) - 1, escape = t->escape_start;
    const decode_entry *entries = t->entries;
    const uint8_t *in = d->in, *const last = d->end - 8, *symbols = t->symbols;
    uint32_t x[MAX_LANES], j = 0;
    for (uint32_t lane = 0; lane < lanes; lane++) x[lane] = d->x[lane];
    if (d->end - d->in < 8) return 0;
    for (; j + lanes <= per_channel && in <= last; j += lanes) {
        uint64_t words = load_four_words(in);
        uint32_t own = UINT32_MAX, taken = 0; /* the top bit of `own` stays while slots lie before the escape's */
        for (uint32_t lane = 0; lane < lanes; lane++) own &= (x[lane] & mask) - escape;
        if (UNLIKELY(!(own >> 31))) {
            for (uint32_t lane = 0; lane < lanes; lane++) d->x[lane] = x[lane];
            d->in = in;
            for (uint32_t lane = 0; lane < lanes; lane++) s[j + lane] = get_symbol(d, lane, t, precision);
            for (uint32_t lane = 0; lane < lanes; lane++) x[lane] = d->x[lane];
            in = d->in;
            continue;
        }
        for (uint32_t lane = 0; lane < lanes; lane++) {
            const uint32_t slot = x[lane] & mask, y = step(x[lane], &entries[slot], precision);
            const uint32_t refilled = y << 16 | (uint32_t)(words & 0xFFFF);
            const uint64_t rest = words >> 16;
            const int low = y < LOWEST_STATE;
            x[lane] = low ? refilled : y;
            words = low ? rest : words;
            taken += low;
            s[j + lane] = symbols[slot];
        }
        in += 2 * taken;
    }
    for (uint32_t lane = 0; lane < lanes; lane++) d->x[lane] = x[lane];
    d->in = in;
    return j;
}

INLINE int decode_frame(const tables *t, uint32_t first, uint32_t channels, uint32_t per_channel, const uint32_t lanes,
                        const uint32_t precision, const uint8_t *payload, size_t size, uint8_t *symbols) {
    decoder d;
    const int status = begin_decoding(&d, payload, size, lanes);
    if (status) return status;
    for (uint32_t c = 0; c < channels; c++) {
        uint8_t *s = symbols + (size_t)c * per_channel;
        const size_t index = first + c;
        const decode_table table = {t->decode + (index << precision), t->symbol + (index << precision),
                                    t->escaped + index * 256,         t->escape_start[index],
                                    t->rank_bits[index],              t->escaped_count[index]};
        for (uint32_t j = decode_groups(&d, s, per_channel, lanes, &table, precision); j < per_channel; j++)
            s[j] = get_symbol(&d, j % lanes, &table, precision);
        if (d.truncated) return PAYLOAD_TRUNCATED;
        if (d.invalid) return PAYLOAD_INVALID;
    }
    return end_decoding(&d, lanes);
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
        /* Constants for what the compiler makes: a shift by a variable costs three instructions on x86-64. */
        if (lanes == 4 && t->precision == 12)
            statuses[i] = decode_frame(t, first[i], channels, per_channel, 4, 12, payload, size, frame);
        else if (lanes == 4)
            statuses[i] = decode_frame(t, first[i], channels, per_channel, 4, t->precision, payload, size, frame);
        else if (lanes == 2)
            statuses[i] = decode_frame(t, first[i], channels, per_channel, 2, t->precision, payload, size, frame);
        else
            statuses[i] = decode_frame(t, first[i], channels, per_channel, 1, t->precision, payload, size, frame);
    }
    return OK;
}
