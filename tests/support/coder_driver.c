/* Runs the coder's shared library on golden files, for architectures whose Python is not at hand:
 *
 *     coder_driver LIBRARY TABLES SYMBOLS LEVEL PER_CHANNEL > PAYLOAD
 *
 * encodes the frame of level LEVEL, decodes what it wrote, and fails unless the symbols come back.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *(*new_function)(uint32_t, uint32_t, uint32_t, const uint16_t *, const uint16_t *);
typedef int32_t (*encode_function)(const void *, uint32_t, const uint32_t *, uint32_t, uint32_t, uint32_t, const uint8_t *,
                                   uint8_t *, uint64_t, uint64_t *);
typedef int32_t (*decode_function)(const void *, uint32_t, const uint32_t *, uint32_t, uint32_t, uint32_t, const uint8_t *,
                                   const uint64_t *, uint8_t *, int32_t *);

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

int main(int count, char **words) {
    if (count != 6) return 2;
    void *library = dlopen(words[1], RTLD_NOW);
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 2;
    new_function make = (new_function)dlsym(library, "narrowcast_rans_new");
    encode_function encode = (encode_function)dlsym(library, "narrowcast_rans_encode");
    decode_function decode = (decode_function)dlsym(library, "narrowcast_rans_decode");

    const uint8_t *tables = read_all(words[2]); /* docs/wire-format.md, coding tables; this machine is little-endian too */
    uint16_t alphabet, levels;
    uint32_t channels;
    memcpy(&alphabet, tables + 8, 2);
    memcpy(&levels, tables + 10, 2);
    memcpy(&channels, tables + 12, 4);
    const uint16_t *frequencies = (const uint16_t *)(tables + 16);
    const uint32_t lanes = tables[6];
    void *handle = make(tables[5], alphabet, levels * channels, frequencies, frequencies + (size_t)levels * channels * alphabet);
    if (!handle) return 3;

    const uint32_t level = (uint32_t)atoi(words[4]), per_channel = (uint32_t)atoi(words[5]), first = level * channels;
    const size_t symbols = (size_t)channels * per_channel;
    const uint8_t *frame = read_all(words[3]) + level * symbols;
    const uint64_t stride = 4 * lanes + 4 * symbols;
    uint8_t *payload = malloc(stride), *decoded = malloc(symbols);
    uint64_t offsets[2] = {0, 0};
    int32_t status = 1;
    if (encode(handle, 1, &first, channels, per_channel, lanes, frame, payload, stride, &offsets[1])) return 4;
    if (decode(handle, 1, &first, channels, per_channel, lanes, payload, offsets, decoded, &status) || status) return 5;
    if (memcmp(frame, decoded, symbols)) return 6;
    return fwrite(payload, 1, offsets[1], stdout) == offsets[1] ? 0 : 7;
}
