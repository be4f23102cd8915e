// Replays a list of launches on the fiber GPU: `replay PROGRAM OUT forward|backward|mixed`. PROGRAM holds, as text, the sizes of
// the buffers and the launches with their arguments, then the buffers' bytes; OUT receives the buffers afterwards. Every buffer is an
// allocation of its own, so that the address sanitizer sees an access that leaves one. tests/it/kernels_common writes the program.
#include "scheduler.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <vector>

namespace {

const size_t ALIGNMENT = 256;

struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
};
struct Buffer {
    size_t bytes;
    std::unique_ptr<unsigned char, Free> memory;
};

[[noreturn]] void bad(const std::string& what) {
    std::cerr << "replay: " << what << "\n";
    std::exit(2);
}

// b INDEX OFFSET (an address), i VALUE (int), f BITS (float as an integer), z (a null address)
uint64_t argument(std::istringstream& line, std::vector<Buffer>& buffers) {
    std::string kind;
    uint64_t value = 0;
    line >> kind;
    if (kind == "b") {
        size_t index, offset;
        line >> index >> offset;
        if (index >= buffers.size() || offset > buffers[index].bytes) bad("an argument lies outside its buffer");
        value = reinterpret_cast<uint64_t>(buffers[index].memory.get() + offset);
    } else if (kind == "i") {
        int32_t number;
        line >> number;
        std::memcpy(&value, &number, 4);
    } else if (kind == "f") {
        uint32_t bits;
        line >> bits;
        std::memcpy(&value, &bits, 4);
    } else if (kind != "z") {
        bad("unknown argument " + kind);
    }
    return value;
}

}  // namespace

int main(int count, char** words) {
    if (count != 4) bad("usage: replay PROGRAM OUT forward|backward|mixed");
    std::string name = words[3];
    Order order = name == "forward" ? Order::Forward : name == "backward" ? Order::Backward : Order::Mixed;
    std::ifstream in(words[1], std::ios::binary);
    if (!in) bad("cannot open the program");
    size_t buffer_count, launch_count;
    std::string text;
    in >> buffer_count;
    std::vector<Buffer> buffers(buffer_count);
    for (Buffer& b : buffers) {
        in >> b.bytes;
        void* memory = nullptr;
        if (posix_memalign(&memory, ALIGNMENT, b.bytes + (b.bytes == 0))) bad("no memory");
        b.memory.reset(static_cast<unsigned char*>(memory));
    }
    in >> launch_count;
    std::getline(in, text);
    std::vector<std::string> launches(launch_count);
    for (std::string& l : launches) std::getline(in, l);
    for (Buffer& b : buffers) in.read(reinterpret_cast<char*>(b.memory.get()), static_cast<std::streamsize>(b.bytes));
    if (!in) bad("the program ends early");
    for (const std::string& l : launches) {
        std::istringstream line(l);
        Launch launched;
        launched.precision = PRECISION;
        line >> launched.kernel >> launched.grid[0] >> launched.grid[1] >> launched.grid[2] >> launched.block >> launched.shared >>
            launched.arguments;
        std::vector<uint64_t> values(launched.arguments);
        std::vector<void*> pointers;
        for (uint64_t& v : values) {
            v = argument(line, buffers);
            pointers.push_back(&v);
        }
        if (!line) bad("a launch line ends early: " + l);
        launch(launched, pointers.data(), order);
    }
    std::ofstream out(words[2], std::ios::binary);
    for (Buffer& b : buffers) out.write(reinterpret_cast<const char*>(b.memory.get()), static_cast<std::streamsize>(b.bytes));
    out.close();
    if (!out) bad("cannot write the result");
    return 0;
}
