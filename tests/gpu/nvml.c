/* A stand-in for NVIDIA's libnvidia-ml.so.1, which says what the file $NVML_STAND_IN says, in lines
 *     devices 0 COUNT                      how many GPUs there are
 *     mig GPU INDEX DEVICE                 a MIG instance of a GPU; other lines have its DEVICE
 *     migmode GPU 0|1                      whether MIG is enabled; without it, as `mig` lines say
 *     uuid|name DEVICE TEXT
 *     memory DEVICE TOTAL USED RESERVED    bytes; USED -1: what the listed processes use. A fourth
 *                                          number: the free bytes, else what is left of the total
 *     utilization|temperature|power DEVICE PERCENT|CELSIUS|MILLIWATTS
 *     compute|graphics|mps DEVICE PID BYTES MIG_INSTANCE     a process (BYTES -1: not available)
 *     lingers DEVICE SECONDS               processes that have ended are listed for so long
 *     fails CALL DEVICE CODE               that call fails
 *     hangs CALL DEVICE SECONDS            that call hangs for so long, or until this line is gone
 * CALL is init, count, handle, one of the words above, memory2 (which tells the reserved bytes),
 * migcount or mighandle; `all` stands for all of a device but handle and mighandle. What no line
 * tells is not supported. An ended PID is listed for as long as its line is there. Calls are noted
 * in $NVML_STAND_IN.calls, as `CALL DEVICE`. NEWEST is the newest version of the calls that list
 * processes, 1, 2 or 3: before 2 there is no MIG; before 3 no memory2, and only version 1 of mps. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
typedef struct { unsigned pid; unsigned long long used; unsigned gpu, compute; } Process;
typedef struct { unsigned pid; unsigned long long used; } OldProcess;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
typedef struct { char what[16], call[16], text[128]; long long device, a, b, c, d; } Line;

static FILE *opened(const char *suffix, const char *mode) {
    char path[4096];
    snprintf(path, sizeof path, "%s%s", getenv("NVML_STAND_IN"), suffix);
    return fopen(path, mode);
}

static int next(FILE *file, Line *line) {
    char text[256];
    int at = 0, text_at = 0;
    if (!fgets(text, sizeof text, file)) return 0;
    memset(line, 0, sizeof *line);
    sscanf(text, "%15s %n", line->what, &at);
    if (!strcmp(line->what, "fails") || !strcmp(line->what, "hangs")) {
        int length = 0;
        sscanf(text + at, "%15s %n", line->call, &length);
        at += length;
    }
    sscanf(text + at, "%lld %n%lld %lld %lld %lld", &line->device, &text_at, &line->a, &line->b,
           &line->c, &line->d);
    snprintf(line->text, sizeof line->text, "%s", text + at + text_at);
    line->text[strcspn(line->text, "\n")] = 0;
    return 1;
}

/* Finds the first line of a device: 0 if there is none. */
static int find(const char *what, long long device, Line *line) {
    int found = 0;
    FILE *file = opened("", "r");
    while (!found && next(file, line)) found = !strcmp(line->what, what) && line->device == device;
    fclose(file);
    return found;
}

/* Returns the number of a `fails` or `hangs` line for a call: 0 if there is none. */
static int fault(const char *what, const char *call, long long device) {
    Line line;
    int number = 0, is_of_library = !strcmp(call, "init") || !strcmp(call, "count");
    int is_figure = !is_of_library && strcmp(call, "handle") && strcmp(call, "mighandle");
    FILE *file = opened("", "r");
    while (next(file, &line))
        if (!strcmp(line.what, what) && line.device == device &&
            (!strcmp(line.call, call) || (is_figure && !strcmp(line.call, "all"))))
            number = (int)line.a;
    fclose(file);
    return number;
}

static long long number_of(void *handle) { return (char *)handle - (char *)0 - 1; }
static void *handle_of(long long device) { return (char *)0 + device + 1; }

/* Notes a call, hangs if it must, and returns its error. */
static int begin(const char *call, long long device) {
    FILE *calls = opened(".calls", "a");
    fprintf(calls, "%s %lld\n", call, device);
    fclose(calls);
    for (int tenths = 0; tenths < 10 * fault("hangs", call, device); tenths++) usleep(100000);
    return fault("fails", call, device);
}

static int runs(long long pid) {
    char path[64], text[512], *end;
    size_t length;
    snprintf(path, sizeof path, "/proc/%lld/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    end = strrchr(text, ')');
    return end && end[2] != 'Z';
}

/* Whether the driver still lists a process: until the time of a `lingers` line after its end. */
static int is_listed(long long device, long long pid) {
    static struct { long long pid; time_t since; } ended[256];
    Line line;
    int i = 0;
    if (!find("lingers", device, &line) || runs(pid)) return 1;
    while (i < 255 && ended[i].pid && ended[i].pid != pid) i++;
    if (!ended[i].pid) ended[i].pid = pid, ended[i].since = time(0);
    return time(0) < ended[i].since + line.a;
}

static int list(const char *call, void *handle, unsigned *room, void *out, int old) {
    long long device = number_of(handle);
    unsigned count = 0;
    Line line;
    int code = begin(call, device);
    if (code) return code;
    FILE *file = opened("", "r");
    while (next(file, &line)) {
        if (strcmp(line.what, call) || line.device != device || !is_listed(device, line.a)) continue;
        unsigned instance = line.c ? (unsigned)line.c : 0xFFFFFFFF; /* none */
        Process process = {line.a, line.b, instance, instance};
        OldProcess older = {line.a, line.b};
        if (count < *room && old) ((OldProcess *)out)[count] = older;
        if (count < *room && !old) ((Process *)out)[count] = process;
        count++;
    }
    fclose(file);
    code = count > *room ? INSUFFICIENT_SIZE : SUCCESS;
    *room = count;
    return code;
}

static int measure(const char *call, void *handle, Memory2 *out) {
    long long device = number_of(handle);
    Line line, process;
    int code = begin(call, device);
    if (code) return code;
    if (!find("memory", device, &line)) return NOT_SUPPORTED;
    if (line.b == -1) {
        FILE *file = opened("", "r");
        line.b = 0;
        while (next(file, &process))
            if (!strcmp(process.what, "compute") && process.device == device && process.b > 0 &&
                is_listed(device, process.a))
                line.b += process.b;
        fclose(file);
    }
    out->total = line.a, out->used = line.b, out->reserved = line.c;
    out->free = line.d ? line.d : line.a - line.b - line.c;
    return SUCCESS;
}

static int text(const char *call, void *handle, char *out, unsigned room) {
    Line line;
    int code = begin(call, number_of(handle));
    if (code) return code;
    if (!find(call, number_of(handle), &line)) return NOT_SUPPORTED;
    snprintf(out, room, "%s", line.text);
    return SUCCESS;
}

static int figure(const char *call, void *handle, unsigned *out) {
    Line line;
    int code = begin(call, number_of(handle));
    if (code) return code;
    if (!find(call, number_of(handle), &line)) return NOT_SUPPORTED;
    *out = (unsigned)line.a;
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) { return begin("init", flags); }
int nvmlShutdown(void) {
    begin("shutdown", 0);
    return SUCCESS;
}
const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "an error"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    Line line;
    *count = find("devices", 0, &line) ? (unsigned)line.a : 0;
    return begin("count", 0);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    *handle = handle_of(index);
    return begin("handle", index);
}

int nvmlDeviceGetUUID(void *handle, char *out, unsigned room) {
    return text("uuid", handle, out, room);
}

int nvmlDeviceGetName(void *handle, char *out, unsigned room) {
    return text("name", handle, out, room);
}

int nvmlDeviceGetMemoryInfo(void *handle, Memory *out) {
    Memory2 all;
    int code = measure("memory", handle, &all);
    if (code) return code;
    out->total = all.total, out->free = all.free, out->used = all.used + all.reserved;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *handle, unsigned *gpu_and_memory) {
    return figure("utilization", handle, gpu_and_memory);
}

int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *out) {
    (void)sensor;
    return figure("temperature", handle, out);
}

int nvmlDeviceGetPowerUsage(void *handle, unsigned *out) { return figure("power", handle, out); }

#define LIST(name, call, old) \
    int name(void *handle, unsigned *room, void *out) { return list(call, handle, room, out, old); }
LIST(nvmlDeviceGetComputeRunningProcesses, "compute", 1)
LIST(nvmlDeviceGetGraphicsRunningProcesses, "graphics", 1)
LIST(nvmlDeviceGetMPSComputeRunningProcesses, "mps", 1)
#if NEWEST >= 2
LIST(nvmlDeviceGetComputeRunningProcesses_v2, "compute", 0)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, "graphics", 0)

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    long long device = number_of(handle);
    Line line;
    int code = begin("migmode", device);
    if (code) return code;
    if (find("migmode", device, &line)) *current = (unsigned)line.a;
    else if (find("mig", device, &line)) *current = 1;
    else return NOT_SUPPORTED;
    *pending = *current;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    Line line;
    *count = find("mig", number_of(handle), &line) ? 7 : 0;
    return begin("migcount", number_of(handle));
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **instance) {
    Line line;
    int code = begin("mighandle", number_of(handle));
    if (code) return code;
    FILE *file = opened("", "r");
    code = NOT_FOUND;
    while (next(file, &line))
        if (!strcmp(line.what, "mig") && line.device == number_of(handle) && line.a == index)
            *instance = handle_of(line.b), code = SUCCESS;
    fclose(file);
    return code;
}
#endif
#if NEWEST >= 3
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, "mps", 0)
LIST(nvmlDeviceGetComputeRunningProcesses_v3, "compute", 0)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics", 0)
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, "mps", 0)

int nvmlDeviceGetMemoryInfo_v2(void *handle, Memory2 *out) {
    return measure("memory2", handle, out);
}
#endif
