// A CUDA driver made of fibers: the calls of libcuda that the program uses, running launches with shim.cpp. What is queued on a stream
// runs as late as the rules allow, when something waits for it, or (FAKE_CUDA_EAGER=N, for the Nth stream that was made) at once: a wait
// that is missing between streams lets work see memory too early or too late. Built as a shared library by tests/it/kernels_common; nobody's GPU.
//
// FAKE_CUDA_CAPABILITY (86), FAKE_CUDA_MEMORY in bytes (1 GiB) and FAKE_CUDA_CAPTURE=0 (no graphs) describe the card.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "scheduler.h"

namespace {

enum Result { OK = 0, INVALID = 1, NO_MEMORY = 2, BAD_IMAGE = 200, NO_CONTEXT = 201, NOT_FOUND = 500, NOT_READY = 600, UNSUPPORTED = 801, UNJOINED = 905 };

std::recursive_mutex lock;
using Guard = std::lock_guard<std::recursive_mutex>;

long long number(const char* name, long long otherwise) {
    const char* text = std::getenv(name);
    return text ? std::atoll(text) : otherwise;
}

// A captured launch and those it comes after.
struct Node {
    std::function<void()> work;
    std::vector<size_t> after;
    bool aside;  // on another stream than that where the capture began
};
struct Graph {
    std::vector<Node> nodes;
    std::vector<struct Stream*> streams;  // that are being captured; the first is where it began
    size_t launched = 0;
};
struct Stream {
    long long index;
    std::vector<std::function<void()>> queue;
    size_t done = 0;
    Graph* capture = nullptr;
    std::vector<size_t> after = {};  // what the next captured launch comes after

    void run(size_t until) {
        while (done < until) {
            // out of the queue first: what runs may itself need an earlier part of this stream
            std::function<void()> next = std::move(queue[done]);
            next();
            done++;
        }
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
    unsigned most_shared = 48 << 10;
};

int context;            // its address is the context
thread_local void* current = nullptr;
std::map<uint64_t, size_t> allocated;
size_t in_use = 64 << 20;  // what a context takes

void enqueue(Stream* stream, std::function<void()> work) {
    stream->queue.push_back(std::move(work));
    if (stream->index == number("FAKE_CUDA_EAGER", -1)) stream->run(stream->queue.size());
}

}  // namespace

#define CALL extern "C" __attribute__((visibility("default"))) Result

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
    std::snprintf(name, static_cast<size_t>(length), "fiber GPU");
    return OK;
}
CALL cuDeviceGetAttribute(int* value, int attribute, int) {
    int capability = static_cast<int>(number("FAKE_CUDA_CAPABILITY", 86));
    // 16: multiprocessors
    *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : attribute == 16 ? 2 : 0;
    return OK;
}
CALL cuFuncSetAttribute(Function* f, int attribute, int value) {
    if (attribute == 8) f->most_shared = static_cast<unsigned>(value);  // dynamic shared memory
    return attribute == 8 && value > 64 << 10 ? INVALID : OK;
}
CALL cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void*, int, size_t) {
    *blocks = 2;
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
CALL cuStreamSynchronize(Stream* stream) {
    Guard guard(lock);
    if (stream->capture) return INVALID;
    stream->run(stream->queue.size());
    return OK;
}
CALL cuStreamDestroy_v2(Stream* stream) {
    cuStreamSynchronize(stream);
    return OK;  // events may still name it
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
    event->stream = stream;
    event->position = stream->queue.size();
    event->capture = stream->capture;
    event->after = stream->after;
    return OK;
}
CALL cuEventQuery(Event* event) {
    Guard guard(lock);
    if (current == nullptr) return NO_CONTEXT;
    if (!event->stream || event->stream->done >= event->position) return OK;
    event->stream->run(event->stream->done + 1);  // time passes
    return NOT_READY;
}
CALL cuEventSynchronize(Event* event) {
    Guard guard(lock);
    if (event->stream) event->stream->run(event->position);
    return OK;
}
CALL cuEventElapsedTime(float* ms, Event* start, Event* end) {
    cuEventSynchronize(start);
    cuEventSynchronize(end);
    *ms = 1;  // there is no clock here that would mean anything
    return OK;
}
CALL cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    Guard guard(lock);
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
    enqueue(stream, [other, position] { other->run(position); });
    return OK;
}

CALL cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, Stream* stream) {
    Guard guard(lock);
    enqueue(stream, [=] { std::memset(reinterpret_cast<void*>(to), value, bytes); });
    return OK;
}
CALL cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, Stream* stream) {
    Guard guard(lock);
    enqueue(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), from, bytes); });
    return OK;
}
CALL cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Stream* stream) {
    Guard guard(lock);
    enqueue(stream, [=] { std::memcpy(to, reinterpret_cast<void*>(from), bytes); });
    return OK;
}

CALL cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Stream* stream) {
    Guard guard(lock);
    enqueue(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
    return OK;
}

CALL cuModuleLoadData(Module** out, const void* image) {
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
    // the embedded text must have it, not only the host's build
    if (module->text.find(std::string(".entry ") + name + "(") == std::string::npos) return NOT_FOUND;
    if (kernel_arguments(module->precision, name) < 0) return NOT_FOUND;
    *out = new Function{module->precision, name};
    module->functions.push_back(*out);
    return OK;
}
CALL cuModuleUnload(Module* module) {
    for (Function* f : module->functions) delete f;
    delete module;
    return OK;
}
CALL cuLaunchKernel(Function* f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                    Stream* stream, void** parameters, void**) {
    Guard guard(lock);
    if (by != 1 || bz != 1 || bx == 0 || bx > 1024 || x == 0 || y == 0 || z == 0 || y > 65535 || z > 65535) return INVALID;
    if (shared > f->most_shared) return INVALID;
    // a real driver copies each argument's declared size now; the caller gives eight bytes for each
    std::vector<uint64_t> values;
    for (int i = 0; i < kernel_arguments(f->precision, f->name); i++) {
        uint64_t value;
        std::memcpy(&value, parameters[i], 8);
        values.push_back(value);
    }
    Launch l{f->precision, f->name, {x, y, z}, bx, shared, static_cast<uint32_t>(values.size())};
    auto work = [l, values]() mutable {
        std::vector<void*> pointers;
        for (uint64_t& v : values) pointers.push_back(&v);
        launch(l, pointers.data(), Order::Mixed);
    };
    if (stream->capture) {
        std::vector<Node>& nodes = stream->capture->nodes;
        nodes.push_back({work, stream->after, stream != stream->capture->streams[0]});
        stream->after = {nodes.size() - 1};
    } else {
        enqueue(stream, work);
    }
    return OK;
}

CALL cuStreamBeginCapture_v2(Stream* stream, int) {
    Guard guard(lock);
    if (number("FAKE_CUDA_CAPTURE", 1) == 0) return UNSUPPORTED;
    stream->capture = new Graph;
    stream->capture->streams.push_back(stream);
    return OK;
}
// Marks a node and all it comes after.
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
// In turn in the order of the capture, and with launches aside as late as the others permit.
CALL cuGraphLaunch(Graph* graph, Stream* stream) {
    Guard guard(lock);
    std::vector<bool> queued(graph->nodes.size());
    std::function<void(size_t)> queue = [&](size_t node) {
        if (queued[node]) return;
        queued[node] = true;
        for (size_t before : graph->nodes[node].after) queue(before);
        enqueue(stream, graph->nodes[node].work);
    };
    if (graph->launched++ % 2 == 0) {
        for (size_t node = 0; node < graph->nodes.size(); node++) queue(node);
    } else {
        for (size_t node = 0; node < graph->nodes.size(); node++)
            if (!graph->nodes[node].aside) queue(node);
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
                                    : "unknown error";
    return OK;
}
CALL cuGetErrorName(Result result, const char** text) { return cuGetErrorString(result, text); }
