/* NVIDIA's management library without a GPU, for tests: two GPUs, of which the second counts no energy. Built like the real one
   against its documented signatures. */

#include <string.h>

enum { OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3 };

static int started, devices[2];
static unsigned long long energy_mj = 5000;

int nvmlInit_v2(void) { started = 1; return OK; }
const char *nvmlErrorString(int status) { return status == NOT_SUPPORTED ? "Not Supported" : "Invalid Argument"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return started ? OK : INVALID_ARGUMENT; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if (index > 1) return INVALID_ARGUMENT;
    *device = &devices[index];
    return OK;
}

int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    strncpy(name, "Fake GPU", length);
    return device ? OK : INVALID_ARGUMENT;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy) {
    if (device == &devices[1]) return NOT_SUPPORTED;
    *energy = energy_mj += 1500;
    return OK;
}
