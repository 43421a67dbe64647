/* A stand-in for NVIDIA's libnvidia-ml.so.1, which says what the file $NVML_STAND_IN says, in lines
 *     compute|graphics DEVICE PID BYTES MIG_INSTANCE     a process (BYTES -1: not available)
 *     devices 0 COUNT                                    how many devices there are
 *     fails compute|graphics|init DEVICE CODE            that call fails
 * and notes the calls in $NVML_STAND_IN.calls. NEWEST is the newest version of the calls that list
 * processes: 1, 2 or 3. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INSUFFICIENT_SIZE = 7 };
typedef struct { unsigned pid; unsigned long long used; unsigned gpu, compute; } Process;
typedef struct { unsigned pid; unsigned long long used; } OldProcess;
typedef struct { char what[16], kind[16]; long long device, pid, used, gpu; } Line;

static FILE *opened(const char *suffix, const char *mode) {
    char path[4096];
    snprintf(path, sizeof path, "%s%s", getenv("NVML_STAND_IN"), suffix);
    return fopen(path, mode);
}

static void note(const char *call, long long device) {
    FILE *calls = opened(".calls", "a");
    fprintf(calls, "%s %lld\n", call, device);
    fclose(calls);
}

static int next(FILE *file, Line *line) {
    char text[256];
    if (!fgets(text, sizeof text, file)) return 0;
    memset(line, 0, sizeof *line);
    if (sscanf(text, "fails %15s %lld %lld", line->kind, &line->device, &line->used) == 3)
        strcpy(line->what, "fails");
    else
        sscanf(text, "%15s %lld %lld %lld %lld", line->what, &line->device, &line->pid, &line->used,
               &line->gpu);
    return 1;
}

static int failure(const char *kind, long long device) {
    Line line;
    int code = SUCCESS;
    FILE *file = opened("", "r");
    while (next(file, &line))
        if (!strcmp(line.what, "fails") && !strcmp(line.kind, kind) && line.device == device)
            code = (int)line.used;
    fclose(file);
    return code;
}

static int list(const char *kind, void *handle, unsigned *room, void *out, int old) {
    long long device = (char *)handle - (char *)0 - 1;
    unsigned count = 0;
    Line line;
    int code = failure(kind, device);
    note(kind, device);
    if (code) return code;
    FILE *file = opened("", "r");
    while (next(file, &line)) {
        if (strcmp(line.what, kind) || line.device != device) continue;
        Process process = {line.pid, line.used, line.gpu, line.gpu};
        OldProcess older = {line.pid, line.used};
        if (count < *room && old) ((OldProcess *)out)[count] = older;
        if (count < *room && !old) ((Process *)out)[count] = process;
        count++;
    }
    fclose(file);
    code = count > *room ? INSUFFICIENT_SIZE : SUCCESS;
    *room = count;
    return code;
}

int nvmlInitWithFlags(unsigned flags) { note("init", flags); return failure("init", 0); }
int nvmlShutdown(void) { note("shutdown", 0); return SUCCESS; }
const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "an error"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    Line line;
    FILE *file = opened("", "r");
    *count = 0;
    while (next(file, &line))
        if (!strcmp(line.what, "devices")) *count = (unsigned)line.pid;
    fclose(file);
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    *handle = (char *)0 + index + 1;
    return SUCCESS;
}

#define LIST(name, kind, old) \
    int name(void *handle, unsigned *room, void *out) { return list(kind, handle, room, out, old); }
LIST(nvmlDeviceGetComputeRunningProcesses, "compute", 1)
LIST(nvmlDeviceGetGraphicsRunningProcesses, "graphics", 1)
#if NEWEST >= 2
LIST(nvmlDeviceGetComputeRunningProcesses_v2, "compute", 0)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, "graphics", 0)
#endif
#if NEWEST >= 3
LIST(nvmlDeviceGetComputeRunningProcesses_v3, "compute", 0)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics", 0)
#endif
