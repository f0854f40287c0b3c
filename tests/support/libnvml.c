/* A stand-in for libnvidia-ml.so.1: one sound device, one hot one that tells little, one that is lost.
 * Struct layouts and numbers are NVML's, as nvidia-ml-py reads them. FAKE_NVML=dead: no driver. */
#include <stdlib.h>
#include <string.h>

enum { INVALID = 2, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9, LOST = 15 };
typedef unsigned long long u64;
static int dead(void) { const char *v = getenv("FAKE_NVML"); return v && !strcmp(v, "dead"); }
#define OF(d) ((int)(long)(d) - 1)
#define SOUND(d) do { if (OF(d)) return NOT_SUPPORTED; } while (0)

int nvmlInitWithFlags(unsigned f) { return dead() ? DRIVER_NOT_LOADED : 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int e) {
    return e == LOST ? "GPU is lost" : e == DRIVER_NOT_LOADED ? "Driver Not Loaded" : "Some Error";
}
int nvmlSystemGetDriverVersion(char *p, unsigned n) { strcpy(p, "580.159.04"); return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)(long)(i + 1); return i == 2 ? LOST : 0; }
int nvmlDeviceGetMemoryInfo(void *d, u64 *m) { m[0] = 100ull << 30; m[1] = 60ull << 30; m[2] = 40ull << 30; return 0; }
int nvmlDeviceGetUUID(void *d, char *p, unsigned n) { strcpy(p, OF(d) ? "GPU-1111" : "GPU-0000"); return 0; }
int nvmlDeviceGetName(void *d, char *p, unsigned n) { strcpy(p, "Stand-in"); return 0; }
int nvmlDeviceGetUtilizationRates(void *d, unsigned *u) { SOUND(d); u[0] = 70; u[1] = 30; return 0; }
int nvmlDeviceGetPowerUsage(void *d, unsigned *p) { SOUND(d); *p = 412500; return 0; }
int nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned *p) { SOUND(d); *p = 700000; return 0; }
int nvmlDeviceGetTemperature(void *d, int kind, unsigned *t) { *t = OF(d) ? 91 : 55; return 0; }
int nvmlDeviceGetClockInfo(void *d, int kind, unsigned *c) { SOUND(d); *c = kind == 1 ? 1980 : 0; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, u64 *r) { *r = OF(d) ? 0x40 | 0x8 : 0x1 | 0x4; return 0; }
int nvmlDeviceGetTotalEccErrors(void *d, int kind, int counter, u64 *n) {
    if (kind != 1 || counter != 0) return INVALID;
    *n = OF(d) ? 3 : 0;
    return 0;
}
int nvmlDeviceGetRemappedRows(void *d, unsigned *a, unsigned *b, unsigned *pending, unsigned *failed) {
    *a = 1; *b = *failed = 0; *pending = OF(d);
    return 0;
}
