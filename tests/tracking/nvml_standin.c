/* A stand-in for NVIDIA's libnvidia-ml.so.1 with four GPUs: 0 with all counters, 1 without power and energy, 2 cut into
 * two MIG slices, 3 with memory alone. With -DOLD it is a driver that knows neither MIG, energy nor NVLink's fields.
 * Types and numbers are those of NVIDIA's nvml.h. */
#include <stdio.h>

typedef int result;
typedef struct { int number; } gpu;
enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6 };
enum { SLICE = 4, OTHER_SLICE = 5 };

static gpu gpus[] = {{0}, {1}, {2}, {3}, {SLICE}, {OTHER_SLICE}};
static const char *uuids[] = {"GPU-aaaa0000", "GPU-aabb0000", "GPU-cccc0000", "GPU-dddd0000",
                              "MIG-11111111-2222-3333-4444-555555555555", "MIG-other"};

result nvmlInitWithFlags(unsigned flags) { return (void)flags, SUCCESS; }
result nvmlInit_v2(void) { return SUCCESS; }
const char *nvmlErrorString(result code) { return (void)code, "an error of the stand-in"; }
result nvmlDeviceGetCount_v2(unsigned *count) { return *count = 4, SUCCESS; }

result nvmlDeviceGetHandleByIndex_v2(unsigned index, gpu **device) {
    if (index >= 4) return INVALID_ARGUMENT;
    return *device = &gpus[index], SUCCESS;
}

result nvmlDeviceGetUUID(gpu *device, char *uuid, unsigned length) {
    return snprintf(uuid, length, "%s", uuids[device->number]), SUCCESS;
}

result nvmlDeviceGetMemoryInfo(gpu *device, unsigned long long *total_free_used) {
    static const unsigned long long used[] = {3, 6, 9, 9, 1, 2};
    total_free_used[0] = 12000000000ULL;
    total_free_used[2] = used[device->number] * 1000000000ULL;
    return total_free_used[1] = total_free_used[0] - total_free_used[2], SUCCESS;
}

/* whether this GPU lacks all but memory */
static int lacks(const gpu *device) { return device->number >= 3; }

result nvmlDeviceGetUtilizationRates(gpu *device, unsigned *gpu_memory) {
    if (lacks(device)) return NOT_SUPPORTED;
    return gpu_memory[0] = 40, gpu_memory[1] = 10, SUCCESS;
}

result nvmlDeviceGetPowerUsage(gpu *device, unsigned *milliwatts) {
    if (lacks(device) || device->number == 1) return NOT_SUPPORTED;
    return *milliwatts = 250000, SUCCESS;
}

result nvmlDeviceGetEnforcedPowerLimit(gpu *device, unsigned *milliwatts) {
    return (void)device, *milliwatts = 500000, SUCCESS;
}

result nvmlDeviceGetTemperature(gpu *device, int sensor, unsigned *celsius) {
    if (lacks(device) || sensor != 0) return NOT_SUPPORTED;
    return *celsius = 61, SUCCESS;
}

result nvmlDeviceGetClockInfo(gpu *device, int kind, unsigned *megahertz) {
    if (lacks(device)) return NOT_SUPPORTED;
    return *megahertz = kind == 1 ? 1500 : kind == 2 ? 2600 : 0, SUCCESS;
}

result nvmlDeviceGetPcieThroughput(gpu *device, int kind, unsigned *kib_per_second) {
    if (lacks(device)) return NOT_SUPPORTED;
    return *kib_per_second = kind == 0 ? 1000000 : 2000000, SUCCESS;
}

#ifndef OLD
result nvmlDeviceGetTotalEnergyConsumption(gpu *device, unsigned long long *millijoules) {
    static unsigned long long read = 1000000; /* 2 Wh between two readings */
    if (lacks(device) || device->number == 1) return NOT_SUPPORTED;
    return *millijoules = read, read += 7200000, SUCCESS;
}

result nvmlDeviceGetMaxMigDeviceCount(gpu *device, unsigned *count) {
    if (device->number != 2) return NOT_SUPPORTED;
    return *count = 3, SUCCESS;
}

result nvmlDeviceGetMigDeviceHandleByIndex(gpu *device, unsigned slot, gpu **slice) {
    if (device->number != 2 || slot == 1) return NOT_FOUND;
    return *slice = &gpus[slot == 0 ? SLICE : OTHER_SLICE], SUCCESS;
}

result nvmlDeviceGetGpuInstanceId(gpu *slice, unsigned *id) { return *id = slice->number == SLICE ? 7 : 8, SUCCESS; }
result nvmlDeviceGetComputeInstanceId(gpu *slice, unsigned *id) { return (void)slice, *id = 0, SUCCESS; }

struct field {
    unsigned id, scope;
    long long timestamp, latency;
    int type;
    result code;
    unsigned long long value;
};

result nvmlDeviceGetFieldValues(gpu *device, int count, struct field *fields) {
    static unsigned long long kib = 0;
    if (lacks(device)) return NOT_SUPPORTED;
    kib += 10000000;
    for (int i = 0; i < count; i++) {
        /* NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, over all links */
        fields[i].code = fields[i].id == 138 && fields[i].scope == 0xFFFFFFFFu ? SUCCESS : NOT_SUPPORTED;
        fields[i].value = kib;
    }
    return SUCCESS;
}
#endif
