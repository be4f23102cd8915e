// A CUDA driver made of fibers: the calls of libcuda that the program uses, with launches run by
// shim.cpp. Work on a stream runs as late as the rules allow, when something waits for it; with
// FAKE_CUDA_EAGER=N, work on the Nth stream that was made runs at once. So a missing wait between
// streams makes work read memory too early or too late. tests/it/kernels_common builds it as a
// shared library.
//
// FAKE_CUDA_CAPABILITY (86), FAKE_CUDA_NAME, FAKE_CUDA_MEMORY in bytes (1 GiB) and
// FAKE_CUDA_CAPTURE=0 (no graphs) describe the card; FAKE_CUDA_LIMITS=1 lets it state what a
// multiprocessor of an RTX 3060 holds. FAKE_CUDA_REGISTERS (16) and FAKE_CUDA_LOCAL (0) are what its
// assembler makes of a kernel, FAKE_CUDA_BLOCKS (2) what fits at once.
//
// FAKE_CUDA_DEVICES (1) is how many cards there are. FAKE_CUDA_LOG=FILE gets a line for every kernel as it
// runs, in FILE-PROCESS, and "early KERNEL" for every launch that may start while the kernel ahead of it
// still runs. Such a launch is refused unless a kernel's launch is the last thing on its stream, the
// card is of 9.0 or newer, and the kernel waits for the one ahead before anything else.
//
// FAKE_CUDA_FAIL=call:number:error lets the call with that number (from 1) of a function fail with an
// error code; "kernel" is not a function but the launches as they run, whose error shows at the next
// call. After an error of a lost device (214, 700 to 719) every later call fails with it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include <unistd.h>

#include "scheduler.h"

namespace {

enum Result { OK = 0, INVALID = 1, NO_MEMORY = 2, BAD_IMAGE = 200, NO_CONTEXT = 201, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL = 700, UNSUPPORTED = 801, UNJOINED = 905 };

std::recursive_mutex lock;
using Guard = std::lock_guard<std::recursive_mutex>;

long long number(const char* name, long long otherwise) {
    const char* text = std::getenv(name);
    return text ? std::atoll(text) : otherwise;
}

// Work on a stream; false: it waits for another process and has to be tried again.
using Work = std::function<bool()>;

// A captured launch, and the launches that it waits for.
struct Node {
    Work work;
    std::vector<size_t> after;
    bool concurrent;  // not on the stream where the capture began
};
struct Graph {
    std::vector<Node> nodes;
    std::vector<struct Stream*> streams;  // being captured; the capture began on the first
    size_t launched = 0;
};
struct Stream {
    long long index;
    std::vector<Work> queue;
    size_t done = 0;
    Graph* capture = nullptr;
    std::vector<size_t> after = {};  // what the next captured launch waits for
    bool after_kernel = false;       // the last thing on it is a kernel's launch

    // Does the next piece of work, unless it waits for another process.
    bool step() {
        // taken out of the queue first: the work may itself need an earlier part of this stream
        Work next = std::move(queue[done]);
        if (!next()) {
            queue[done] = std::move(next);
            return false;
        }
        done++;
        return true;
    }
    // True when all work up to a position is done.
    bool try_run(size_t until) {
        while (done < until)
            if (!step()) return false;
        return true;
    }
    void run(size_t until) {
        while (!try_run(until)) usleep(200);
    }
};
struct Event {
    Stream* stream = nullptr;
    size_t position = 0;
    Graph* capture = nullptr;
    std::vector<size_t> after = {};
};
struct Module {
    int precision;
    std::string text;
    std::vector<struct Function*> functions;
};
struct Function {
    int precision;
    std::string name;
    bool waits;  // for the kernel ahead of it, before it touches memory
    unsigned most_shared = 48 << 10;
};

int context;            // its address is the context
thread_local void* current = nullptr;
std::map<uint64_t, size_t> allocated;
size_t in_use = 64 << 20;  // bytes that a context takes

// The error that the device is lost with; 0 while it works.
int lost = 0;
// The error of this call: that of a lost device, or the one that FAKE_CUDA_FAIL asks for.
Result fails(const char* call) {
    static std::map<std::string, int> calls;
    static const char* wanted = std::getenv("FAKE_CUDA_FAIL");
    Guard guard(lock);
    if (lost && std::strcmp(call, "kernel")) return static_cast<Result>(lost);
    if (!wanted) return OK;
    std::string text = wanted;
    size_t first = text.find(':'), second = text.find(':', first + 1);
    if (text.substr(0, first) != call || ++calls[call] != std::atoi(text.c_str() + first + 1)) return OK;
    int error = std::atoi(text.c_str() + second + 1);
    if (error == 214 || (error >= 700 && error <= 719 && error != 701)) lost = error;
    return static_cast<Result>(error);
}
#define MAY_FAIL(call) \
    if (Result error = fails(call)) return error

void note(const char* text) {
    static const char* name = std::getenv("FAKE_CUDA_LOG");
    static FILE* file = name ? std::fopen((std::string(name) + "-" + std::to_string(getpid())).c_str(), "a") : nullptr;
    if (!file) return;
    std::fprintf(file, "%s\n", text);
    std::fflush(file);
}

void enqueue_tried(Stream* stream, Work work) {
    stream->after_kernel = false;
    stream->queue.push_back(std::move(work));
    if (stream->index == number("FAKE_CUDA_EAGER", -1)) stream->run(stream->queue.size());
}
void enqueue(Stream* stream, std::function<void()> work) {
    enqueue_tried(stream, [work] {
        work();
        return true;
    });
}

}  // namespace

#define CALL extern "C" __attribute__((visibility("default"))) Result

// For the stand-in of NCCL (nccl.cpp): work that may wait for another process, and lines of the log.
extern "C" __attribute__((visibility("default"))) void paragon_enqueue(Stream* stream, bool (*work)(void*), void* argument) {
    Guard guard(lock);
    enqueue_tried(stream, [=] { return work(argument); });
}
extern "C" __attribute__((visibility("default"))) void paragon_note(const char* text) {
    Guard guard(lock);
    note(text);
}

CALL cuInit(unsigned) { return OK; }
CALL cuDriverGetVersion(int* version) {
    *version = static_cast<int>(number("FAKE_CUDA_DRIVER", 12010));
    return OK;
}
CALL cuDeviceGetCount(int* count) {
    *count = static_cast<int>(number("FAKE_CUDA_DEVICES", 1));
    return OK;
}
CALL cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return OK;
}
CALL cuDeviceGetName(char* name, int length, int) {
    const char* own = std::getenv("FAKE_CUDA_NAME");
    std::snprintf(name, static_cast<size_t>(length), "%s", own ? own : "fiber GPU");
    return OK;
}
CALL cuDeviceGetUuid_v2(unsigned char* bytes, int device) {
    std::memset(bytes, 0, 16);
    bytes[0] = static_cast<unsigned char>(device + 1);
    bytes[1] = static_cast<unsigned char>(number("FAKE_CUDA_UUID", 0));
    return OK;
}
CALL cuDeviceGetAttribute(int* value, int attribute, int) {
    int capability = static_cast<int>(number("FAKE_CUDA_CAPABILITY", 86));
    // 16: multiprocessors
    *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : attribute == 16 ? 2 : 0;
    if (!number("FAKE_CUDA_LIMITS", 0)) return OK;
    // kHz and bits of the memory, bytes of the cache; registers, shared memory (and what the driver
    // takes of it for a block), threads and blocks of a multiprocessor
    const std::map<int, int> limits = {{36, 7501000}, {37, 192}, {38, 2359296}, {82, 65536}, {81, 102400}, {111, 1024}, {39, 1536}, {106, 16}};
    if (limits.count(attribute)) *value = limits.at(attribute);
    return OK;
}
CALL cuFuncGetAttribute(int* value, int attribute, Function*) {
    // 4: registers, 3: local memory
    *value = static_cast<int>(attribute == 4 ? number("FAKE_CUDA_REGISTERS", 16) : attribute == 3 ? number("FAKE_CUDA_LOCAL", 0) : 0);
    return OK;
}
CALL cuFuncSetAttribute(Function* f, int attribute, int value) {
    if (attribute == 8) f->most_shared = static_cast<unsigned>(value);  // dynamic shared memory
    return attribute == 8 && value > 64 << 10 ? INVALID : OK;
}
CALL cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void*, int, size_t) {
    *blocks = static_cast<int>(number("FAKE_CUDA_BLOCKS", 2));
    return OK;
}
CALL cuDevicePrimaryCtxRetain(void** out, int) {
    *out = &context;
    return OK;
}
CALL cuDevicePrimaryCtxRelease_v2(int) { return OK; }
CALL cuCtxGetCurrent(void** out) {
    *out = current;
    return OK;
}
CALL cuCtxSetCurrent(void* to) {
    current = to;
    return OK;
}
CALL cuCtxSetFlags(unsigned) { return OK; }
CALL cuCtxSynchronize() { return OK; }
CALL cuMemGetInfo_v2(size_t* free, size_t* total) {
    Guard guard(lock);
    *total = static_cast<size_t>(number("FAKE_CUDA_MEMORY", 1 << 30));
    *free = *total > in_use ? *total - in_use : 0;
    return OK;
}
CALL cuMemAlloc_v2(uint64_t* out, size_t bytes) {
    Guard guard(lock);
    size_t free, total;
    cuMemGetInfo_v2(&free, &total);
    void* memory = nullptr;
    if (bytes > free || posix_memalign(&memory, 512, bytes)) return NO_MEMORY;
    std::memset(memory, 0xff, bytes);
    *out = reinterpret_cast<uint64_t>(memory);
    allocated[*out] = bytes;
    in_use += bytes;
    return OK;
}
CALL cuMemFree_v2(uint64_t memory) {
    Guard guard(lock);
    if (!allocated.count(memory)) return INVALID;
    in_use -= allocated[memory];
    allocated.erase(memory);
    std::free(reinterpret_cast<void*>(memory));
    return OK;
}
CALL cuMemHostAlloc(void** out, size_t bytes, unsigned) { return posix_memalign(out, 4096, bytes) ? NO_MEMORY : OK; }
CALL cuMemFreeHost(void* memory) {
    std::free(memory);
    return OK;
}

CALL cuStreamCreate(Stream** out, unsigned) {
    Guard guard(lock);
    static long long made = 0;
    *out = new Stream{made++, {}};
    return OK;
}
CALL cuStreamCreateWithPriority(Stream** out, unsigned flags, int) { return cuStreamCreate(out, flags); }
CALL cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return OK;
}
CALL cuStreamSynchronize(Stream* stream) {
    Guard guard(lock);
    MAY_FAIL("cuStreamSynchronize");
    if (stream->capture) return INVALID;
    stream->run(stream->queue.size());
    return static_cast<Result>(lost);
}
CALL cuStreamDestroy_v2(Stream* stream) {
    cuStreamSynchronize(stream);
    return OK;  // events may still refer to it
}
CALL cuEventCreate(Event** out, unsigned) {
    *out = new Event;
    return OK;
}
CALL cuEventDestroy_v2(Event* event) {
    Guard guard(lock);
    delete event;
    return OK;
}
CALL cuEventRecord(Event* event, Stream* stream) {
    Guard guard(lock);
    stream->after_kernel = false;
    event->stream = stream;
    event->position = stream->queue.size();
    event->capture = stream->capture;
    event->after = stream->after;
    return OK;
}
CALL cuEventQuery(Event* event) {
    Guard guard(lock);
    if (current == nullptr) return NO_CONTEXT;
    MAY_FAIL("cuEventQuery");
    if (!event->stream || event->stream->done >= event->position) return OK;
    event->stream->step();  // time passes
    return NOT_READY;
}
CALL cuEventSynchronize(Event* event) {
    Guard guard(lock);
    MAY_FAIL("cuEventSynchronize");
    if (event->stream) event->stream->run(event->position);
    return static_cast<Result>(lost);
}
CALL cuEventElapsedTime(float* ms, Event* start, Event* end) {
    cuEventSynchronize(start);
    cuEventSynchronize(end);
    *ms = 1;  // there is no clock here that would mean anything
    return OK;
}
CALL cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    Guard guard(lock);
    stream->after_kernel = false;
    if (!event->stream || event->stream == stream) return OK;
    if (event->capture) {
        // a stream that waits for a captured launch is captured, too
        if (stream->capture && stream->capture != event->capture) return INVALID;
        if (!stream->capture) event->capture->streams.push_back(stream);
        stream->capture = event->capture;
        stream->after.insert(stream->after.end(), event->after.begin(), event->after.end());
        return OK;
    }
    if (stream->capture) return INVALID;
    Stream* other = event->stream;
    size_t position = event->position;
    enqueue_tried(stream, [other, position] { return other->try_run(position); });
    return OK;
}

CALL cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, Stream* stream) {
    Guard guard(lock);
    MAY_FAIL("cuMemsetD8Async");
    enqueue(stream, [=] { std::memset(reinterpret_cast<void*>(to), value, bytes); });
    return OK;
}
CALL cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, Stream* stream) {
    Guard guard(lock);
    MAY_FAIL("cuMemcpyHtoDAsync");
    enqueue(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), from, bytes); });
    return OK;
}
CALL cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Stream* stream) {
    Guard guard(lock);
    MAY_FAIL("cuMemcpyDtoHAsync");
    enqueue(stream, [=] { std::memcpy(to, reinterpret_cast<void*>(from), bytes); });
    return OK;
}

CALL cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Stream* stream) {
    Guard guard(lock);
    MAY_FAIL("cuMemcpyDtoDAsync");
    enqueue(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
    return OK;
}

CALL cuModuleLoadData(Module** out, const void* image) {
    MAY_FAIL("cuModuleLoadData");
    std::string text = static_cast<const char*>(image);
    const char* names[] = {"f32", "bf16", "fp16"};
    for (int precision = 0; precision < 3; precision++) {
        if (text.find(std::string("// activations: ") + names[precision] + "\n") == std::string::npos) continue;
        *out = new Module{precision, text, {}};
        return OK;
    }
    return BAD_IMAGE;
}
CALL cuModuleGetFunction(Function** out, Module* module, const char* name) {
    MAY_FAIL("cuModuleGetFunction");
    // the embedded PTX must have the kernel, too, not only the host's build
    size_t entry = module->text.find(std::string(".entry ") + name + "(");
    if (entry == std::string::npos) return NOT_FOUND;
    if (argument_bytes(module->precision, name) < 0) return NOT_FOUND;
    size_t end = module->text.find(".entry ", entry + 1);
    bool waits = module->text.find("griddepcontrol.wait;", entry) < end;
    *out = new Function{module->precision, name, waits};
    module->functions.push_back(*out);
    return OK;
}
CALL cuModuleUnload(Module* module) {
    for (Function* f : module->functions) delete f;
    delete module;
    return OK;
}
// Queues a launch, or adds it to the graph that is being captured.
static Result start(Function* f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared, Stream* stream,
                    void** parameters) {
    if (by != 1 || bz != 1 || bx == 0 || bx > 1024 || x == 0 || y == 0 || z == 0 || y > 65535 || z > 65535) return INVALID;
    if (shared > f->most_shared) return INVALID;
    // as a real driver, copy the struct now; the caller may change it after the call
    int bytes = argument_bytes(f->precision, f->name);
    std::vector<uint64_t> arguments((bytes + 7) / 8);
    std::memcpy(arguments.data(), parameters[0], bytes);
    Launch l{f->precision, f->name, {x, y, z}, bx, shared, static_cast<uint32_t>(bytes)};
    Work work = [l, arguments] {
        if (lost || fails("kernel")) return true;
        note(l.kernel.c_str());
        launch(l, arguments.data(), Order::Mixed);
        return true;
    };
    if (stream->capture) {
        std::vector<Node>& nodes = stream->capture->nodes;
        nodes.push_back({work, stream->after, stream != stream->capture->streams[0]});
        stream->after = {nodes.size() - 1};
    } else {
        enqueue_tried(stream, work);
    }
    stream->after_kernel = true;
    return OK;
}
CALL cuLaunchKernel(Function* f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                    Stream* stream, void** parameters, void**) {
    Guard guard(lock);
    MAY_FAIL("cuLaunchKernel");
    return start(f, x, y, z, bx, by, bz, shared, stream, parameters);
}
// The one attribute of launches that is known: that the kernel may start while the one ahead runs.
struct Attribute {
    unsigned id, padding;
    union {
        int allowed;
        char bytes[64];
    };
};
struct LaunchConfig {
    unsigned x, y, z, bx, by, bz, shared;
    Stream* stream;
    const Attribute* attributes;
    unsigned count;
};
CALL cuLaunchKernelEx(const LaunchConfig* c, Function* f, void** parameters, void**) {
    Guard guard(lock);
    MAY_FAIL("cuLaunchKernelEx");
    if (c->count != 1 || c->attributes[0].id != 6 || c->attributes[0].allowed != 1) return UNSUPPORTED;
    if (number("FAKE_CUDA_CAPABILITY", 86) < 90 || !f->waits || !c->stream->after_kernel) return INVALID;
    note(("early " + f->name).c_str());
    return start(f, c->x, c->y, c->z, c->bx, c->by, c->bz, c->shared, c->stream, parameters);
}

CALL cuStreamBeginCapture_v2(Stream* stream, int) {
    Guard guard(lock);
    if (number("FAKE_CUDA_CAPTURE", 1) == 0) return UNSUPPORTED;
    stream->after_kernel = false;
    stream->capture = new Graph;
    stream->capture->streams.push_back(stream);
    return OK;
}
// Marks a node and everything that it waits for.
static void mark(const Graph& graph, size_t node, std::vector<bool>& marked) {
    if (marked[node]) return;
    marked[node] = true;
    for (size_t before : graph.nodes[node].after) mark(graph, before, marked);
}
CALL cuStreamEndCapture(Stream* stream, Graph** out) {
    Guard guard(lock);
    Graph* graph = *out = stream->capture;
    if (!graph || graph->streams[0] != stream) return INVALID;
    std::vector<bool> met(graph->nodes.size());
    for (size_t node : stream->after) mark(*graph, node, met);
    for (Stream* captured : graph->streams) {
        captured->capture = nullptr;
        captured->after_kernel = false;
        captured->after.clear();
    }
    for (bool is : met)
        if (!is) return UNJOINED;
    return OK;
}
CALL cuGraphInstantiateWithFlags(Graph** out, Graph* graph, unsigned long long) {
    *out = new Graph(*graph);
    return OK;
}
// Alternates between the order of the capture, and concurrent launches as late as the others
// permit.
CALL cuGraphLaunch(Graph* graph, Stream* stream) {
    Guard guard(lock);
    MAY_FAIL("cuGraphLaunch");
    std::vector<bool> queued(graph->nodes.size());
    std::function<void(size_t)> queue = [&](size_t node) {
        if (queued[node]) return;
        queued[node] = true;
        for (size_t before : graph->nodes[node].after) queue(before);
        enqueue_tried(stream, graph->nodes[node].work);
    };
    if (graph->launched++ % 2 == 0) {
        for (size_t node = 0; node < graph->nodes.size(); node++) queue(node);
    } else {
        for (size_t node = 0; node < graph->nodes.size(); node++)
            if (!graph->nodes[node].concurrent) queue(node);
        for (size_t node = 0; node < graph->nodes.size(); node++) queue(node);
    }
    return OK;
}
CALL cuGraphExecDestroy(Graph* graph) {
    delete graph;
    return OK;
}
CALL cuGraphDestroy(Graph* graph) {
    delete graph;
    return OK;
}
CALL cuGetErrorString(Result result, const char** text) {
    *text = result == NO_MEMORY     ? "out of memory"
            : result == INVALID     ? "invalid argument"
            : result == BAD_IMAGE   ? "device kernel image is invalid"
            : result == NOT_FOUND   ? "named symbol not found"
            : result == UNSUPPORTED ? "operation not supported"
            : result == ILLEGAL     ? "an illegal memory access was encountered"
                                    : "unknown error";
    return OK;
}
CALL cuGetErrorName(Result result, const char** text) { return cuGetErrorString(result, text); }
