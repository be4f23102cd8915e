// The scheduler of the fiber GPU; see shim.h. A launch fails with a message where a device would
// hang or behave undefined: when a thread ends before a barrier that others wait at, when not all
// lanes reach a warp operation, or when they reach different ones.
#include "shim.h"
#include "scheduler.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include <sys/mman.h>

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

enum class State : u8 { Ready, Barrier, Warp, Done };
struct Fiber {
    Context context;
    State state = State::Done;
};

// Below each stack is memory that cannot be accessed, of the largest size that pages have. Both together
// are an odd number of 4 KiB: equal pages of the stacks would otherwise share few sets of the processor's
// table of pages.
const size_t STACK = 260 << 10, GUARD = 64 << 10;
const u32 MOST_THREADS = 1024;
Context scheduler;
Fiber fibers[MOST_THREADS];
u32 prepared;  // fibers that have a stack
u32 running;
Entry entry;
const void* arguments;
unsigned char* shared;
size_t shared_bytes;

enum class Operation { Barrier, Words, Rows };
// A warp, and the operation that its lanes wait at. Words and addresses are double-buffered, so that
// a fast lane's next operation does not overwrite what a slow lane still reads.
struct Warp {
    u32 waiting = 0;  // lanes
    u32 side = 0;     // the buffer of the next operation
    Operation operation = Operation::Barrier;
    Together together = nullptr;
    u32 words[2][32][6];
    const void* rows[2][32];
    u32 made[32][4];
};
std::vector<Warp> warps;
// The lanes of a block in the order of their turns, and the part of it whose lanes run in turns until
// none of them can.
std::vector<u32> sequence;
struct {
    u32 first, end, at;
    u32 first_warp, end_warp;
} turn;
const char* launched;

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "%s: block (%u, %u, %u): %s\n", launched, blockIdx.x, blockIdx.y, blockIdx.z, what);
    std::exit(3);
}

// The position of step i of n in an order: forward, backward, or one that mixes early with late.
u32 place(Order order, u32 i, u32 n) {
    switch (order) {
        case Order::Forward: return i;
        case Order::Backward: return n - 1 - i;
        default: return i % 2 ? n - 1 - i / 2 : i / 2;
    }
}

// Lets a warp continue whose lanes all wait at a warp operation. No lane is ready when it is called.
bool release_warp(u32 index) {
    Warp& w = warps[index];
    if (w.waiting == 0) return false;
    if (w.waiting < 32) fail("some lanes of a warp do not reach a warp operation that others wait at");
    if (w.together) w.together(w.words[w.side], w.made);
    w.waiting = 0;
    w.side ^= 1;
    for (u32 i = 32 * index; i < 32 * index + 32; i++) fibers[i].state = State::Ready;
    return true;
}

// Chooses the next lane that can run; after the last one it releases warps. False if all lanes whose
// turn it is have ended or wait at a barrier.
bool choose_lane() {
    for (;;) {
        while (turn.at < turn.end) {
            u32 lane = sequence[turn.at++];
            if (fibers[lane].state != State::Ready) continue;
            running = lane;
            threadIdx = {lane, 0, 0};
            if (turn.at < turn.end) approach(fibers[sequence[turn.at]].context);
            return true;
        }
        bool released = false;
        for (u32 i = turn.first_warp; i < turn.end_warp; i++) released |= release_warp(i);
        if (!released) return false;
        turn.at = turn.first;
    }
}

// The running lane waits, or has ended. The next lane runs at once: a detour by the scheduler would
// be a second switch, and the processor predicts where a switch returns to if both are at one place.
void wait(State state) {
    Fiber& own = fibers[running];
    own.state = state;
    Context& next = choose_lane() ? fibers[running].context : scheduler;
    if (&next != &own.context) switch_to(own.context, next);
}

void wait_at(Operation operation, Together together) {
    Warp& w = warps[running / 32];
    if (w.waiting++ == 0) {
        w.operation = operation;
        w.together = together;
    } else if (w.operation != operation || w.together != together) {
        fail("lanes of a warp wait at different warp operations");
    }
    wait(State::Warp);
}

// A fiber runs its lane of one block after the other.
void run_fiber() {
    begun(scheduler);
    for (;;) {
        entry(arguments);
        wait(State::Done);
    }
}

// Gives stacks to the fibers of a block.
void prepare(u32 count) {
    if (count <= prepared) return;
    size_t each = GUARD + STACK;
    void* memory = mmap(nullptr, (count - prepared) * each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for the stacks");
    for (unsigned char* at = static_cast<unsigned char*>(memory); prepared < count; prepared++, at += each) {
        if (mprotect(at, GUARD, PROT_NONE)) fail("a stack cannot be guarded");
        // Equal lines of all stacks would share one set of the cache if they began at equal places in a page.
        begin(fibers[prepared].context, at + GUARD, STACK - prepared * 832 % 4096, run_fiber);
    }
}

// The order of turns. In Forward and Backward a warp runs until it waits at a barrier, or ends, before
// the next one starts: as far ahead as the rules allow. In Mixed all lanes run in turns.
void order_lanes(Order order, u32 count) {
    sequence.clear();
    if (order == Order::Mixed) {
        for (u32 i = 0; i < count; i++) sequence.push_back(place(order, i, count));
        return;
    }
    for (u32 w = 0; w < count / 32; w++)
        for (u32 i = 0; i < 32; i++) sequence.push_back(place(order, w, count / 32) * 32 + place(order, i, 32));
}

void run_block(Order order, u32 count) {
    u32 together = order == Order::Mixed ? count : 32;
    for (u32 i = 0; i < count; i++) fibers[i].state = State::Ready;
    for (;;) {
        for (u32 first = 0; first < count; first += together) {
            u32 warp = order == Order::Mixed ? 0 : sequence[first] / 32;
            turn = {first, first + together, first, warp, warp + together / 32};
            if (choose_lane()) switch_to(scheduler, fibers[running].context);
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

// The barrier that does nothing; no line is 0.
struct Skipped {
    std::string file;
    int line = 0;
};
const Skipped skipped = [] {
    Skipped s;
    const char* text = std::getenv("PARAGON_FIBERS_SKIP");
    const char* colon = text ? std::strrchr(text, ':') : nullptr;
    if (colon) {
        s.file = "/" + std::string(text, colon);
        s.line = std::atoi(colon + 1);
    }
    return s;
}();

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
    if (l.block == 0 || l.block > k.threads || l.block > MOST_THREADS) fail("more threads than the kernel is bounded to");
    if (l.argument_bytes != k.argument_bytes) fail("arguments of another size than the kernel takes");
    if (l.block % 32 != 0) fail("a block must be whole warps");
    prepare(l.block);
    entry = k.entry;
    arguments = args;
    blockDim = {l.block, 1, 1};
    gridDim = {l.grid[0], l.grid[1], l.grid[2]};
    warps.assign(l.block / 32, Warp());
    order_lanes(order, l.block);
    // exactly as large as the launch says, for the sanitizer
    std::vector<Bytes16> memory((l.shared + 15) / 16);
    shared = reinterpret_cast<unsigned char*>(memory.data());
    shared_bytes = memory.size() * sizeof(Bytes16);
    u32 blocks = l.grid[0] * l.grid[1] * l.grid[2];
    for (u32 i = 0; i < blocks; i++) {
        u32 b = place(order, i, blocks);
        blockIdx = {b % l.grid[0], b / l.grid[0] % l.grid[1], b / l.grid[0] / l.grid[1]};
        // full of NaN, so that reading before writing shows
        if (!memory.empty()) std::memset(shared, 0xff, shared_bytes);
        run_block(order, l.block);
    }
}

unsigned char* shared_memory() { return shared; }
void barrier(const char* file, int line) {
    if (line == skipped.line) {
        size_t length = std::strlen(file), ending = skipped.file.size();
        if (length >= ending && skipped.file == file + length - ending) return;
    }
    wait(State::Barrier);
}
void warp_barrier() { wait_at(Operation::Barrier, nullptr); }

void require(bool holds, const char* rule) {
    if (!holds) fail(rule);
}
const u32 (&warp_exchange(const u32 (&own)[6], Together together))[4] {
    Warp& w = warps[running / 32];
    u32 lane = running % 32;
    std::memcpy(w.words[w.side][lane], own, sizeof own);
    wait_at(Operation::Words, together);
    return w.made[lane];
}
const void* const* warp_exchange_rows(const void* own) {
    size_t at = reinterpret_cast<uintptr_t>(own) - reinterpret_cast<uintptr_t>(shared);
    require(at % 16 == 0 && at < shared_bytes, "a lane gives ldmatrix an address outside the block's shared memory, or an unaligned one");
    Warp& w = warps[running / 32];
    u32 side = w.side;
    w.rows[side][running % 32] = own;
    wait_at(Operation::Rows, nullptr);
    return w.rows[side];
}
float shuffle(float value, int lane) {
    Warp& w = warps[running / 32];
    u32 side = w.side;
    w.words[side][running % 32][0] = float_to_bits(value);
    wait_at(Operation::Words, nullptr);
    return bits_to_float(w.words[side][lane & 31][0]);
}
float shuffle_xor(float value, int mask) { return shuffle(value, lane_index() ^ mask); }
