// The scheduler of the fiber GPU; see shim.h. A launch fails with a message where a device would
// hang or behave undefined: when a thread ends before a barrier that others wait at, or when not
// all lanes reach a warp operation.
#include "shim.h"
#include "scheduler.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "fiber.h"

Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

struct Kernel {
    u32 threads, argument_bytes;
    Entry entry;
};
// by type of activations and name
std::map<std::pair<int, std::string>, Kernel>& kernels() {
    static std::map<std::pair<int, std::string>, Kernel> map;
    return map;
}

enum class State { Ready, Barrier, Warp, Done };
struct Fiber {
    Context context;
    std::vector<unsigned char> stack;
    State state;
};

const size_t STACK = 256 << 10;
Context scheduler;
std::vector<Fiber> fibers;
u32 running;
Entry entry;
const void* arguments;
unsigned char* shared;
size_t shared_bytes;
// Values that lanes exchange. Double-buffered, so that a fast lane's next operation does not
// overwrite what a slow lane still reads.
struct Exchange {
    u32 words[2][32][6];
    const void* rows[2][32];
    u32 parity[32];
};
std::vector<Exchange> warps;
const char* launched;

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "%s: block (%u, %u, %u): %s\n", launched, blockIdx.x, blockIdx.y, blockIdx.z, what);
    std::exit(3);
}

void wait(State state) {
    fibers[running].state = state;
    switch_to(fibers[running].context, scheduler);
}

void run_fiber() {
    entry(arguments);
    fibers[running].state = State::Done;
    switch_to(fibers[running].context, scheduler);
}

// The position of step i of n in an order: forward, backward, or one that mixes early with late.
u32 place(Order order, u32 i, u32 n) {
    switch (order) {
        case Order::Forward: return i;
        case Order::Backward: return n - 1 - i;
        default: return i % 2 ? n - 1 - i / 2 : i / 2;
    }
}

void prepare(Fiber& f) {
    begin(f.context, f.stack.data(), f.stack.size(), run_fiber);
    f.state = State::Ready;
}

void run_lane(u32 lane) {
    running = lane;
    threadIdx = {lane, 0, 0};
    switch_to(scheduler, fibers[lane].context);
}

// Lets the lanes of a warp continue when all wait at a warp operation.
bool release_warp(u32 first, u32 lanes) {
    u32 waiting = 0, ready = 0;
    for (u32 i = first; i < first + lanes; i++) {
        waiting += fibers[i].state == State::Warp;
        ready += fibers[i].state == State::Ready;
    }
    if (waiting == 0) return false;
    if (waiting < lanes) {
        if (ready == 0) fail("some lanes of a warp do not reach a warp operation that others wait at");
        return false;
    }
    for (u32 i = first; i < first + lanes; i++) fibers[i].state = State::Ready;
    return true;
}

// In Forward and Backward a warp runs until it waits at a barrier, or ends, before the next one
// starts: as far ahead as the rules allow. In Mixed all lanes run in turns.
void run_block(Order order, u32 count) {
    for (u32 i = 0; i < count; i++) prepare(fibers[i]);
    u32 warps = (count + 31) / 32;
    for (;;) {
        for (u32 w = 0; order != Order::Mixed && w < warps; w++) {
            u32 first = place(order, w, warps) * 32, lanes = count - first < 32 ? count - first : 32;
            do {
                for (u32 i = 0; i < lanes; i++) {
                    u32 lane = first + place(order, i, lanes);
                    if (fibers[lane].state == State::Ready) run_lane(lane);
                }
            } while (release_warp(first, lanes));
        }
        bool released = order == Order::Mixed;
        while (released) {
            for (u32 i = 0; i < count; i++) {
                u32 lane = place(order, i, count);
                if (fibers[lane].state == State::Ready) run_lane(lane);
            }
            released = false;
            for (u32 first = 0; first < count; first += 32) released |= release_warp(first, count - first < 32 ? count - first : 32);
        }
        u32 at_barrier = 0, done = 0;
        for (u32 i = 0; i < count; i++) {
            at_barrier += fibers[i].state == State::Barrier;
            done += fibers[i].state == State::Done;
        }
        if (done == count) return;
        if (at_barrier < count) fail("some threads end, or wait elsewhere, while others wait at a barrier");
        for (u32 i = 0; i < count; i++) fibers[i].state = State::Ready;
    }
}

}  // namespace

Registered::Registered(int precision, const char* name, u32 threads, u32 argument_bytes, Entry entry) {
    kernels()[{precision, name}] = {threads, argument_bytes, entry};
}

int argument_bytes(int precision, const std::string& name) {
    auto found = kernels().find({precision, name});
    return found == kernels().end() ? -1 : static_cast<int>(found->second.argument_bytes);
}

void launch(const Launch& l, const void* args, Order order) {
    auto found = kernels().find({l.precision, l.kernel});
    launched = l.kernel.c_str();
    blockIdx = {0, 0, 0};
    if (found == kernels().end()) fail("there is no such kernel");
    const Kernel& k = found->second;
    if (l.block == 0 || l.block > k.threads) fail("more threads than the kernel is bounded to");
    if (l.argument_bytes != k.argument_bytes) fail("arguments of another size than the kernel takes");
    if (l.block % 32 != 0) fail("a block must be whole warps");
    entry = k.entry;
    arguments = args;
    blockDim = {l.block, 1, 1};
    gridDim = {l.grid[0], l.grid[1], l.grid[2]};
    while (fibers.size() < l.block) {
        fibers.emplace_back();
        fibers.back().stack.resize(STACK);
    }
    fibers.resize(l.block);
    warps.assign((l.block + 31) / 32, Exchange());
    u32 blocks = l.grid[0] * l.grid[1] * l.grid[2];
    for (u32 i = 0; i < blocks; i++) {
        u32 b = place(order, i, blocks);
        blockIdx = {b % l.grid[0], b / l.grid[0] % l.grid[1], b / l.grid[0] / l.grid[1]};
        // exactly as large as the launch says, for the sanitizer, and full of NaN, so that reading
        // before writing shows
        std::vector<Bytes16> memory((l.shared + 15) / 16);
        shared = reinterpret_cast<unsigned char*>(memory.data());
        shared_bytes = memory.size() * sizeof(Bytes16);
        if (!memory.empty()) std::memset(shared, 0xff, memory.size() * 16);
        run_block(order, l.block);
    }
}

unsigned char* shared_memory() { return shared; }
void barrier(const char* file, int line) {
    static const char* skipped = std::getenv("PARAGON_FIBERS_SKIP");
    if (skipped) {
        std::string place = std::string(file) + ":" + std::to_string(line), skip = std::string("/") + skipped;
        if (place.size() >= skip.size() && place.compare(place.size() - skip.size(), skip.size(), skip) == 0) return;
    }
    wait(State::Barrier);
}
void warp_barrier() { wait(State::Warp); }
int lane_index() { return static_cast<int>(threadIdx.x % 32); }

const u32 (*warp_exchange(const u32 (&own)[6]))[6] {
    Exchange& e = warps[running / 32];
    u32 lane = running % 32, side = e.parity[lane]++ % 2;
    std::memcpy(e.words[side][lane], own, sizeof own);
    wait(State::Warp);
    return warps[running / 32].words[side];
}
void require(bool holds, const char* rule) {
    if (!holds) fail(rule);
}
const void* const* warp_exchange_rows(const void* own) {
    size_t at = reinterpret_cast<uintptr_t>(own) - reinterpret_cast<uintptr_t>(shared);
    require(at % 16 == 0 && at < shared_bytes, "a lane gives ldmatrix an address outside the block's shared memory, or an unaligned one");
    Exchange& e = warps[running / 32];
    u32 lane = running % 32, side = e.parity[lane]++ % 2;
    e.rows[side][lane] = own;
    wait(State::Warp);
    return warps[running / 32].rows[side];
}
float shuffle(float value, int lane) {
    u32 own[6] = {float_to_bits(value), 0, 0, 0, 0, 0};
    return bits_to_float(warp_exchange(own)[lane & 31][0]);
}
float shuffle_xor(float value, int mask) { return shuffle(value, lane_index() ^ mask); }

u16 to_fp16(float value) {
    u32 bits = float_to_bits(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fff;
    if (magnitude >= 0x477ff000u) return static_cast<u16>(sign | 0x7c00u);  // rounds to 65536 or more
    if (magnitude < 0x38800000u) {
        // subnormal: whole multiples of 2^-24, rounded to nearest even by the addition of 0.5
        float rounded = bits_to_float(magnitude) + 0.5f;
        return static_cast<u16>(sign | (float_to_bits(rounded) - 0x3f000000u));
    }
    u32 rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u;
    return static_cast<u16>(sign | rounded >> 13);
}
float from_fp16(u16 bits) {
    u32 sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, fraction = bits & 0x3ffu;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) return std::copysign(static_cast<float>(fraction) * 0x1p-24f, bits_to_float(sign));
    return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
}
