/* Runs the coder's shared library on golden files, for architectures whose Python is not at hand:
 *
 *     coder_driver LIBRARY TABLES SYMBOLS LEVEL HEIGHT WIDTH [MEMORY] > PAYLOAD
 *
 * encodes the frame of level LEVEL, decodes what it wrote, and fails unless the symbols come back. TABLES are coding tables,
 * context tables or video tables, which go with MEMORY (docs/wire-format.md); this machine is little-endian too.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint8_t *read_all(const char *name) {
    FILE *file = fopen(name, "rb");
    if (!file) exit(2);
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    uint8_t *data = malloc((size_t)size + 1);
    if (fread(data, 1, (size_t)size, file) != (size_t)size) exit(2);
    fclose(file);
    return data;
}

static void *library;

static void *function(const char *name) {
    void *found = dlsym(library, name);
    if (!found) exit((fprintf(stderr, "no %s\n", name), 2));
    return found;
}

static uint32_t number(const uint8_t *at, int bytes) {
    uint32_t value = 0;
    memcpy(&value, at, (size_t)bytes);
    return value;
}

static void *coding_tables(const uint8_t *data) {
    void *(*make)(uint32_t, uint32_t, uint32_t, const uint16_t *, const uint16_t *) = function("narrowcast_rans_new");
    const uint32_t alphabet = number(data + 8, 2), count = number(data + 10, 2) * number(data + 12, 4);
    const uint16_t *frequencies = (const uint16_t *)(data + 16);
    void *made = make(data[5], alphabet, count, frequencies, frequencies + (size_t)count * alphabet);
    if (!made) exit(3);
    return made;
}

typedef struct {
    uint32_t channels, height, width, level;
    const uint8_t *frame;
    const int16_t *memory;
    uint8_t *payload, *decoded;
    uint64_t stride, offsets[2];
    int32_t status;
} job;

static int by_channel(job *j, const uint8_t *data) {
    int32_t (*encode)(const void *, uint32_t, const uint32_t *, uint32_t, uint32_t, uint32_t, const uint8_t *, uint8_t *,
                      uint64_t, uint64_t *) = function("narrowcast_rans_encode");
    int32_t (*decode)(const void *, uint32_t, const uint32_t *, uint32_t, uint32_t, uint32_t, const uint8_t *,
                      const uint64_t *, uint8_t *, int32_t *) = function("narrowcast_rans_decode");
    const uint32_t first = j->level * j->channels, per_channel = j->height * j->width, lanes = data[6];
    void *tables = coding_tables(data);
    if (encode(tables, 1, &first, j->channels, per_channel, lanes, j->frame, j->payload, j->stride, &j->offsets[1])) return 4;
    return decode(tables, 1, &first, j->channels, per_channel, lanes, j->payload, j->offsets, j->decoded, &j->status) ? 5 : 0;
}

static int by_context(job *j, const uint8_t *data, const uint8_t *memory_weights) {
    void *(*make)(uint32_t, uint32_t, uint32_t, uint32_t, const void *, const void *, const void *, const void *,
                  const uint8_t *, const void *) = function("narrowcast_context_new");
    int32_t (*encode)(const void *, const void *, uint32_t, const uint32_t *, uint32_t, uint32_t, uint32_t, const int16_t *,
                      const uint8_t *, uint8_t *, uint64_t, uint64_t *) = function("narrowcast_context_encode");
    int32_t (*decode)(const void *, const void *, uint32_t, const uint32_t *, uint32_t, uint32_t, uint32_t, const int16_t *,
                      const uint8_t *, const uint64_t *, uint8_t *, int32_t *) = function("narrowcast_context_decode");
    const uint32_t classes = data[6], levels = number(data + 8, 2), places = levels * j->channels;
    const uint8_t *mean = data + 16, *mean_bias = mean + 8 * places, *scale = mean_bias + 4 * places;
    const uint8_t *scale_bias = scale + 14 * places, *thresholds = scale_bias + 4 * places;
    const uint8_t *bank = thresholds + 2 * (classes - 1);
    uint8_t class_of[1024];
    for (uint32_t s = 0; s < 1024; s++)
        for (class_of[s] = 0; class_of[s] < classes - 1u && number(thresholds + 2 * class_of[s], 2) <= s;) class_of[s]++;
    uint8_t *aligned = malloc(1 << 20);
    memcpy(aligned, bank, 16 + (size_t)classes * 8 * (number(bank + 8, 2) + 1u));
    void *tables = coding_tables(aligned);
    void *model = make(levels, j->channels, data[5], number(bank + 8, 2), mean, mean_bias, scale, scale_bias, class_of,
                       memory_weights);
    const uint32_t lanes = bank[6];
    if (!model) return 3;
    if (encode(model, tables, 1, &j->level, j->height, j->width, lanes, j->memory, j->frame, j->payload, j->stride,
               &j->offsets[1]))
        return 4;
    return decode(model, tables, 1, &j->level, j->height, j->width, lanes, j->memory, j->payload, j->offsets, j->decoded,
                  &j->status) ? 5 : 0;
}

static int by_reference(job *j, const uint8_t *data) {
    const uint32_t levels = number(data + 6, 2);
    const uint8_t *weights = data + 16 + 4 * levels;
    return by_context(j, weights + 10 * (size_t)levels * j->channels, weights);
}

int main(int count, char **words) {
    const uint8_t *data = count < 7 ? NULL : read_all(words[2]);
    const int predicted = data && !memcmp(data, "NCVT", 4);
    if (!data || count != 7 + predicted) return 2;
    library = dlopen(words[1], RTLD_NOW);
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 2;
    job j = {.level = (uint32_t)atoi(words[4]), .height = (uint32_t)atoi(words[5]), .width = (uint32_t)atoi(words[6])};
    j.channels = number(data + (predicted ? 8 : 12), 4);
    const size_t symbols = (size_t)j.channels * j.height * j.width;
    j.frame = read_all(words[3]) + j.level * symbols;
    if (predicted) j.memory = (const int16_t *)read_all(words[7]) + j.level * symbols;
    j.stride = 16 + 4 * symbols;
    j.payload = malloc(j.stride);
    j.decoded = malloc(symbols);
    const int contexts = !memcmp(data, "NCCX", 4);
    const int failed = predicted ? by_reference(&j, data) : contexts ? by_context(&j, data, NULL) : by_channel(&j, data);
    if (failed || j.status) return failed ? failed : 5;
    if (memcmp(j.frame, j.decoded, symbols)) return 6;
    return fwrite(j.payload, 1, j.offsets[1], stdout) == j.offsets[1] ? 0 : 7;
}
