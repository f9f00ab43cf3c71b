/* Frames whose every symbol has a table of its own, chosen by what is decoded already.
 *
 * From the neighbours that both ends know, two integer predictions are made: the symbol's mean, in quarter steps, and how
 * far off it will be. What is coded is the difference to the mean, with the table of the predicted scale's class and of the
 * mean's fraction. The arithmetic is written down in docs/wire-format.md; contexts.py's NumPy twin gives the same bytes.
 *
 * Frames of a video may be predicted from a reference as well: the mean then also goes by the reference's memory, a plane
 * of numbers per channel that both ends keep (docs/wire-format.md, codec 5; contexts.py makes it).
 *
 * Weights and thresholds come from a bundle that was checked before; the sizes below bound every sum within 32 bits:
 * |v| <= 255, e <= 255, r < 2048, |n| <= 4080, |weight| < 2^15, |bias| <= 2^24.
 */
#include "rans.h"

#define MEAN_INPUTS 4
#define SCALE_INPUTS 7
#define MEMORY_INPUTS 5
#define MEMORY_SHIFT 4
#define MEAN_SHIFT 10
#define SCALE_SHIFT 8
#define SCALES 1024
#define FRACTIONS 4
#define MOST_ERROR 255

typedef struct {
    uint32_t levels, channels;
    int32_t zero, alphabet;
    int16_t *mean;        /* [levels][channels][MEAN_INPUTS]: left, up, up-left, up-right */
    int32_t *mean_bias;   /* [levels][channels] */
    int16_t *scale;       /* [levels][channels][SCALE_INPUTS]: the same four, previous channel, all before, those around */
    int32_t *scale_bias;  /* [levels][channels] */
    int16_t *memory;      /* [levels][channels][MEMORY_INPUTS]: here, left, right, up, down; NULL: no references */
    uint8_t class_of[SCALES];
} context_model;

EXPORT void narrowcast_context_free(context_model *m) {
    if (!m) return;
    free(m->mean);
    free(m->mean_bias);
    free(m->scale);
    free(m->scale_bias);
    free(m->memory);
    free(m);
}

static void *copy_of(const void *from, size_t size) {
    void *to = malloc(size);
    return to ? memcpy(to, from, size) : NULL;
}

/* Copies what it is given; NULL where memory is short. class_of: uint8 [1024], the class of a predicted scale. memory: the
 * weights of a reference's memory, or NULL. */
EXPORT context_model *narrowcast_context_new(uint32_t levels, uint32_t channels, uint32_t zero, uint32_t alphabet,
                                             const int16_t *mean, const int32_t *mean_bias, const int16_t *scale,
                                             const int32_t *scale_bias, const uint8_t *class_of, const int16_t *memory) {
    const size_t count = (size_t)levels * channels;
    if (alphabet < 1 || alphabet > MAX_ALPHABET || zero >= alphabet || !count) return NULL;
    context_model *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->levels = levels;
    m->channels = channels;
    m->zero = (int32_t)zero;
    m->alphabet = (int32_t)alphabet;
    m->mean = copy_of(mean, count * MEAN_INPUTS * sizeof *mean);
    m->mean_bias = copy_of(mean_bias, count * sizeof *mean_bias);
    m->scale = copy_of(scale, count * SCALE_INPUTS * sizeof *scale);
    m->scale_bias = copy_of(scale_bias, count * sizeof *scale_bias);
    memcpy(m->class_of, class_of, SCALES);
    if (memory) m->memory = copy_of(memory, count * MEMORY_INPUTS * sizeof *memory);
    if (m->mean && m->mean_bias && m->scale && m->scale_bias && (m->memory || !memory)) return m;
    narrowcast_context_free(m);
    return NULL;
}

/* What is known of a frame so far. Planes have a border of zeros all around; `stride` is their width. All of it fits 16
 * bits, so that the products below are ones that every CPU has as vectors. */
typedef struct {
    uint32_t height, width, stride;
    int16_t *values;   /* of this channel, symbol - zero */
    int16_t *errors;   /* of this channel: how far off the mean was, quarter steps, at most MOST_ERROR */
    int16_t *previous; /* errors of the channel before */
    int16_t *recent;   /* a moving sum of the errors of all channels before */
    int16_t *memory;   /* of this channel, the reference's; NULL without one */
    int32_t *recalled; /* what it adds to the sums for the means */
    int32_t *mean;     /* of one row: predictions, for a decoder without what waits for the left neighbour */
    int32_t *scale;
    void *block;
} state;

static int state_new(state *s, uint32_t height, uint32_t width, const int predicted) {
    const size_t stride = (size_t)width + 2, plane = stride * ((size_t)height + 2);
    const size_t own = 4 * sizeof(int16_t), more = predicted ? sizeof(int16_t) + sizeof(int32_t) : 0;
    uint8_t *at = calloc(1, plane * (own + more) + 2 * (size_t)width * sizeof(int32_t));
    *s = (state){.height = height, .width = width, .stride = (uint32_t)stride, .block = at};
    if (!at) return 0;
    s->mean = (int32_t *)at;
    s->scale = s->mean + width;
    s->recalled = s->scale + width;
    s->values = (int16_t *)(s->recalled + (predicted ? plane : 0));
    s->errors = s->values + plane;
    s->previous = s->errors + plane;
    s->recent = s->previous + plane;
    if (predicted) s->memory = s->recent + plane;
    return 1;
}

/* The weights of one level's channel. */
typedef struct {
    const int16_t *mean, *scale, *memory;
    int32_t mean_bias, scale_bias;
} weights;

static weights weights_of(const context_model *m, uint32_t level, uint32_t channel) {
    const size_t i = (size_t)level * m->channels + channel;
    return (weights){m->mean + i * MEAN_INPUTS, m->scale + i * SCALE_INPUTS,
                     m->memory ? m->memory + i * MEMORY_INPUTS : NULL, m->mean_bias[i], m->scale_bias[i]};
}

/* Row y's sums for the means, and for the errors: all of them for an encoder (`left` 1), for a decoder (0) without what waits
 * for the left neighbour. */
INLINE void mean_row(const state *s, const weights *w, uint32_t y, const int left) {
    const int16_t *here = s->values + (size_t)(y + 1) * s->stride + 1, *up = here - s->stride;
    const int16_t w0 = left ? w->mean[0] : 0, w1 = w->mean[1], w2 = w->mean[2], w3 = w->mean[3];
    int32_t *mean = s->mean;
    for (int32_t x = 0; x < (int32_t)s->width; x++)
        mean[x] = w->mean_bias + w1 * up[x] + w2 * up[x - 1] + w3 * up[x + 1] + (left ? w0 * here[x - 1] : 0);
    if (!s->memory) return;
    const int32_t *recalled = s->recalled + (size_t)(y + 1) * s->stride + 1;
    for (int32_t x = 0; x < (int32_t)s->width; x++) mean[x] += recalled[x];
}

/* What the reference's memory of a channel, [height * width] of `memory`, adds to all sums for the means. The whole plane in one
 * go, border and all: rows are short. */
static void recall(state *s, const weights *w, const int16_t *memory, uint32_t channel) {
    if (!s->memory) return;
    const int16_t *from = memory + (size_t)channel * s->height * s->width;
    for (uint32_t y = 0; y < s->height; y++)
        memcpy(s->memory + (size_t)(y + 1) * s->stride + 1, from + (size_t)y * s->width, s->width * sizeof *from);
    const int32_t stride = (int32_t)s->stride, end = stride * (int32_t)(s->height + 1);
    const int16_t *n = s->memory, *k = w->memory;
    const int16_t k0 = k[0], k1 = k[1], k2 = k[2], k3 = k[3], k4 = k[4];
    int32_t *recalled = s->recalled;
    for (int32_t i = stride; i < end; i++)
        recalled[i] = (k0 * n[i] + k1 * n[i - 1] + k2 * n[i + 1] + k3 * n[i - stride] + k4 * n[i + stride]) >> MEMORY_SHIFT;
}

INLINE void scale_row(const state *s, const weights *w, uint32_t y, const int left) {
    const size_t at = (size_t)(y + 1) * s->stride + 1;
    const int32_t stride = (int32_t)s->stride;
    const int16_t *here = s->errors + at, *up = here - stride, *previous = s->previous + at, *recent = s->recent + at;
    const int16_t *u = w->scale;
    const int16_t u0 = left ? u[0] : 0, u1 = u[1], u2 = u[2], u3 = u[3], u4 = u[4], u5 = u[5], u6 = u[6];
    int32_t *scale = s->scale;
    for (int32_t x = 0; x < (int32_t)s->width; x++) {
        const int16_t around = (int16_t)(recent[x - 1] + recent[x + 1] + recent[x - stride] + recent[x + stride]);
        scale[x] = w->scale_bias + u1 * up[x] + u2 * up[x - 1] + u3 * up[x + 1] + u4 * previous[x] + u5 * recent[x] +
                   u6 * around + (left ? u0 * here[x - 1] : 0);
    }
}

/* A channel is over: its errors join those of the channels before. */
static void end_channel(state *s) {
    const size_t plane = (size_t)s->stride * (s->height + 2);
    int16_t *errors = s->errors, *recent = s->recent;
    for (size_t i = 0; i < plane; i++) recent[i] = (int16_t)(recent[i] - (recent[i] >> 3) + errors[i]);
    s->errors = s->previous;
    s->previous = errors;
}

INLINE int32_t clamp(int32_t x, int32_t low, int32_t high) { return x < low ? low : x > high ? high : x; }

/* The mean in quarter steps, from its sum. */
INLINE int32_t mean_of(const context_model *m, int32_t sum) {
    return clamp((sum + (1 << (MEAN_SHIFT - 1))) >> MEAN_SHIFT, -4 * m->zero, 4 * (m->alphabet - 1 - m->zero));
}

/* Which table, from the sum for the error and the mean. */
INLINE uint32_t table_of(const context_model *m, int32_t sum, int32_t mean) {
    return (uint32_t)m->class_of[clamp(sum >> SCALE_SHIFT, 0, SCALES - 1)] * FRACTIONS + ((uint32_t)(mean + 2) & 3);
}

INLINE int16_t error_of(int32_t value, int32_t mean) {
    const int32_t error = 4 * value - mean;
    return (int16_t)clamp(error < 0 ? -error : error, 0, MOST_ERROR);
}

/* What codes a frame's symbols, in the decoder's order. coded, table: [channels][height * width]. */
static void choose(const context_model *m, uint32_t level, state *s, const int16_t *memory, const uint8_t *symbols,
                   uint8_t *coded, uint8_t *table) {
    const int32_t alphabet = m->alphabet, centre = alphabet >> 1;
    for (uint32_t c = 0; c < m->channels; c++) {
        const weights w = weights_of(m, level, c);
        recall(s, &w, memory, c);
        for (uint32_t y = 0; y < s->height; y++, symbols += s->width, coded += s->width, table += s->width) {
            int16_t *values = s->values + (size_t)(y + 1) * s->stride + 1, *errors = s->errors + (size_t)(y + 1) * s->stride + 1;
            for (uint32_t x = 0; x < s->width; x++) values[x] = (int16_t)(symbols[x] - m->zero);
            mean_row(s, &w, y, 1);
            for (uint32_t x = 0; x < s->width; x++) {
                s->mean[x] = mean_of(m, s->mean[x]);
                errors[x] = error_of(values[x], s->mean[x]);
            }
            scale_row(s, &w, y, 1);
            for (uint32_t x = 0; x < s->width; x++) {
                int32_t t = values[x] - ((s->mean[x] + 2) >> 2) + centre;
                t += t < 0 ? alphabet : t >= alphabet ? -alphabet : 0;
                coded[x] = (uint8_t)t;
                table[x] = (uint8_t)table_of(m, s->scale[x], s->mean[x]);
            }
        }
        end_channel(s);
    }
}

INLINE encode_table encode_table_of(const tables *t, uint32_t index) {
    return (encode_table){t->encode + (size_t)index * (t->alphabet + 1), t->rank + (size_t)index * t->alphabet, t->alphabet,
                          t->rank_bits[index]};
}

/* One frame, written downwards so that it ends at `end`; returns its first byte. */
INLINE uint8_t *encode_frame(const tables *t, uint32_t channels, uint32_t per_channel, const uint32_t lanes,
                             const uint8_t *coded, const uint8_t *table, uint8_t *end) {
    uint32_t x[MAX_LANES] = {LOWEST_STATE, LOWEST_STATE, LOWEST_STATE, LOWEST_STATE};
    uint8_t *out = end;
    for (uint32_t c = channels; c-- > 0;) {
        const size_t at = (size_t)c * per_channel;
        for (uint32_t j = per_channel; j-- > 0;) {
            const encode_table e = encode_table_of(t, table[at + j]);
            x[j % lanes] = put_symbol(x[j % lanes], coded[at + j], &e, &out);
        }
    }
    return put_states(x, lanes, out);
}

/* The next symbol, of table number `index`. Neighbouring symbols have different tables, and a lookup by slot would keep all
 * of them, 20 KB each, on the move between the caches: a bucket and a step or two from it find the entry in 1 KB. */
INLINE uint8_t get_coded(decoder *d, uint32_t lane, const tables *t, uint32_t index, const uint32_t precision) {
    const uint32_t slot = d->x[lane] & ((1u << precision) - 1);
    const uint16_t *starts = t->starts + (size_t)index * (t->alphabet + 2);
    uint32_t entry = t->bucket[((size_t)index << BUCKET_BITS) + (slot >> (precision - BUCKET_BITS))];
    while (starts[entry + 1] <= slot) entry++;
    uint32_t x = (uint32_t)(starts[entry + 1] - starts[entry]) * (d->x[lane] >> precision) + slot - starts[entry];
    x = refill(x, d);
    uint8_t symbol = t->owner[(size_t)index * (t->alphabet + 1) + entry];
    if (UNLIKELY(slot >= t->escape_start[index])) {
        const decode_table escape = {.escaped = t->escaped + (size_t)index * 256,
                                     .rank_bits = t->rank_bits[index],
                                     .escaped_count = t->escaped_count[index]};
        symbol = get_escaped(d, &x, &escape);
    }
    d->x[lane] = x;
    return symbol;
}

INLINE int decode_frame(const context_model *m, const tables *t, uint32_t level, state *s, const uint32_t lanes,
                        const uint32_t precision, const int16_t *memory, const uint8_t *payload, size_t size,
                        uint8_t *symbols) {
    const int32_t alphabet = m->alphabet, centre = alphabet >> 1, lowest = -m->zero, highest = alphabet - 1 - m->zero;
    decoder d;
    int status = begin_decoding(&d, payload, size, lanes);
    if (status) return status;
    for (uint32_t c = 0; c < m->channels; c++) {
        const weights w = weights_of(m, level, c);
        recall(s, &w, memory, c);
        uint32_t lane = 0;
        for (uint32_t y = 0; y < s->height; y++) {
            int16_t *values = s->values + (size_t)(y + 1) * s->stride + 1, *errors = s->errors + (size_t)(y + 1) * s->stride + 1;
            int32_t left = 0, left_error = 0;
            mean_row(s, &w, y, 0);
            scale_row(s, &w, y, 0);
            for (uint32_t x = 0; x < s->width; x++) {
                const int32_t mean = mean_of(m, s->mean[x] + w.mean[0] * left);
                const uint32_t table = table_of(m, s->scale[x] + w.scale[0] * left_error, mean);
                left = get_coded(&d, lane, t, table, precision) - centre + ((mean + 2) >> 2);
                left += left < lowest ? alphabet : left > highest ? -alphabet : 0;
                left_error = error_of(left, mean);
                values[x] = (int16_t)left;
                errors[x] = (int16_t)left_error;
                *symbols++ = (uint8_t)(left + m->zero);
                lane = (lane + 1) & (lanes - 1);
            }
        }
        if (d.truncated) return PAYLOAD_TRUNCATED;
        if (d.invalid) return PAYLOAD_INVALID;
        end_channel(s);
    }
    return end_decoding(&d, lanes);
}

static int fits(const context_model *m, const tables *t, uint32_t level, uint32_t lanes, const int16_t *memory) {
    if (!m || !t || level >= m->levels || !(lanes == 1 || lanes == 2 || lanes == 4) || !m->memory != !memory) return 0;
    for (uint32_t i = 0; i < SCALES; i++)
        if (((uint32_t)m->class_of[i] + 1) * FRACTIONS > t->count) return 0;
    return t->alphabet == (uint32_t)m->alphabet && t->count <= 256;
}

/* Encodes `frames` frames of [channels][height][width] symbols; out, stride and sizes as in narrowcast_rans_encode. memory:
 * int16 [frames][channels][height][width], the references', where the model goes by them, else NULL. */
EXPORT int32_t narrowcast_context_encode(const context_model *m, const tables *t, uint32_t frames, const uint32_t *levels,
                                         uint32_t height, uint32_t width, uint32_t lanes, const int16_t *memory,
                                         const uint8_t *symbols, uint8_t *out, uint64_t stride, uint64_t *sizes) {
    const uint32_t per_channel = height * width;
    const size_t count = m ? (size_t)m->channels * per_channel : 0;
    if (stride < 4 * (uint64_t)lanes + 4 * (uint64_t)count) return OUTPUT_FULL;
    uint8_t *coded = malloc(2 * count + 1);
    int32_t status = coded ? OK : OUT_OF_MEMORY;
    for (uint32_t i = 0; i < frames && status == OK; i++) {
        uint8_t *begin = out + i * stride, *end = begin + stride, *at, largest = 0;
        const uint8_t *frame = symbols + i * count;
        const int16_t *recalled = memory ? memory + i * count : NULL;
        state s;
        for (size_t j = 0; j < count; j++) largest = frame[j] > largest ? frame[j] : largest;
        if (!fits(m, t, levels[i], lanes, memory)) {
            status = BAD_ARGUMENT;
        } else if (count && largest >= m->alphabet) {
            status = SYMBOL_OUTSIDE_ALPHABET;
        } else if (!state_new(&s, height, width, recalled != NULL)) {
            status = OUT_OF_MEMORY;
        } else {
            choose(m, levels[i], &s, recalled, frame, coded, coded + count);
            if (lanes == 4)
                at = encode_frame(t, m->channels, per_channel, 4, coded, coded + count, end);
            else if (lanes == 2)
                at = encode_frame(t, m->channels, per_channel, 2, coded, coded + count, end);
            else
                at = encode_frame(t, m->channels, per_channel, 1, coded, coded + count, end);
            sizes[i] = (uint64_t)(end - at);
            memmove(begin, at, (size_t)(end - at));
            free(s.block);
        }
    }
    free(coded);
    return status;
}

/* Decodes `frames` payloads; the arguments as in narrowcast_rans_decode. */
EXPORT int32_t narrowcast_context_decode(const context_model *m, const tables *t, uint32_t frames, const uint32_t *levels,
                                         uint32_t height, uint32_t width, uint32_t lanes, const int16_t *memory,
                                         const uint8_t *payloads, const uint64_t *offsets, uint8_t *symbols,
                                         int32_t *statuses) {
    for (uint32_t i = 0; i < frames; i++) {
        state s;
        if (!fits(m, t, levels[i], lanes, memory) || offsets[i + 1] < offsets[i]) return BAD_ARGUMENT;
        if (!state_new(&s, height, width, memory != NULL)) return OUT_OF_MEMORY;
        const uint8_t *payload = payloads + offsets[i];
        const size_t size = (size_t)(offsets[i + 1] - offsets[i]);
        const size_t at = (size_t)i * m->channels * height * width;
        uint8_t *frame = symbols + at;
        const int16_t *recalled = memory ? memory + at : NULL;
        if (lanes == 4 && t->precision == 12)
            statuses[i] = decode_frame(m, t, levels[i], &s, 4, 12, recalled, payload, size, frame);
        else if (lanes == 2 && t->precision == 12)
            statuses[i] = decode_frame(m, t, levels[i], &s, 2, 12, recalled, payload, size, frame);
        else
            statuses[i] = decode_frame(m, t, levels[i], &s, lanes, t->precision, recalled, payload, size, frame);
        free(s.block);
    }
    return OK;
}
