/* A CUDA driver without a GPU, for tests: memory is the host's, and what a real one insists on is insisted on. Copies from
   the GPU happen when the stream is waited for, and a thread must have made the context its own. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_CONTEXT = 201 };

static int fake_context, initialised, missing, live_blocks, live_streams;
static size_t budget = (size_t)1 << 30;
static __thread void *current;

typedef struct copy { void *to; uint64_t from; size_t size; struct copy *next; } copy;
typedef struct { copy *first, *last; } stream;

int fake_blocks(void) { return live_blocks; }
int fake_streams(void) { return live_streams; }
void fake_budget(size_t bytes) { budget = bytes; }
void fake_missing(int absent) { missing = absent; initialised = 0; }

#define INSIDE() do { if (current != &fake_context) return INVALID_CONTEXT; } while (0)

int cuInit(unsigned flags) { if (flags) return INVALID_VALUE; initialised = !missing; return missing ? NO_DEVICE : OK; }

int cuGetErrorString(int status, const char **text) {
    *text = status == OUT_OF_MEMORY ? "out of memory" : status == NO_DEVICE ? "no CUDA-capable device is detected"
          : status == INVALID_CONTEXT ? "invalid device context" : "invalid argument";
    return OK;
}

int cuDeviceGet(int *device, int ordinal) { if (!initialised || ordinal) return INVALID_VALUE; *device = 0; return OK; }

int cuDeviceGetName(char *name, int size, int device) {
    if (device) return INVALID_VALUE;
    strncpy(name, "Fake GPU", (size_t)size);
    return OK;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (device || (attribute != 75 && attribute != 76)) return INVALID_VALUE;
    *value = attribute == 75 ? 8 : 7;
    return OK;
}

int cuDevicePrimaryCtxRetain(void **context, int device) { if (device) return INVALID_VALUE; *context = &fake_context; return OK; }

int cuCtxSetCurrent(void *context) { current = context; return OK; }

int cuStreamCreate(void **made, unsigned flags) {
    INSIDE();
    if (flags > 1) return INVALID_VALUE;
    *made = calloc(1, sizeof(stream));
    live_streams++;
    return OK;
}

int cuStreamSynchronize(void *handle) {
    INSIDE();
    stream *s = handle;
    while (s->first) {
        copy *done = s->first;
        memcpy(done->to, (void *)(uintptr_t)done->from, done->size);
        s->first = done->next;
        free(done);
    }
    return OK;
}

int cuStreamDestroy_v2(void *handle) { INSIDE(); free(handle); live_streams--; return OK; }

int cuMemAlloc_v2(uint64_t *address, size_t size) {
    INSIDE();
    if (!size) return INVALID_VALUE;
    if (size > budget) return OUT_OF_MEMORY;
    *address = (uint64_t)(uintptr_t)malloc(size);
    live_blocks++;
    return OK;
}

int cuMemFree_v2(uint64_t address) { INSIDE(); free((void *)(uintptr_t)address); live_blocks--; return OK; }

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *handle) {
    INSIDE();
    if (!handle) return INVALID_VALUE;
    memcpy((void *)(uintptr_t)to, from, size);
    return OK;
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *handle) {
    INSIDE();
    if (!handle) return INVALID_VALUE;
    stream *s = handle;
    copy *waiting = malloc(sizeof *waiting);
    *waiting = (copy){to, from, size, NULL};
    if (s->first) s->last->next = waiting; else s->first = waiting;
    s->last = waiting;
    return OK;
}
