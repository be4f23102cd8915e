// Replays a list of launches on the fiber GPU: `replay PROGRAM OUT forward|backward|mixed`. PROGRAM
// has, as text, the sizes of the buffers and the launches with their arguments, then the buffers'
// bytes; OUT receives the buffers afterwards. Every buffer is an allocation of its own, so that the
// address sanitizer notices an access outside of it. tests/it/kernels_common writes the program.
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
            launched.argument_bytes;
        // the struct's 8-byte words, each `w VALUE` or `b BUFFER OFFSET` (an address)
        std::vector<uint64_t> words((launched.argument_bytes + 7) / 8);
        for (uint64_t& word : words) {
            std::string kind;
            line >> kind >> word;
            if (kind == "w") continue;
            if (kind != "b") bad("unknown argument " + kind);
            size_t offset;
            line >> offset;
            if (word >= buffers.size() || offset > buffers[word].bytes) bad("an argument lies outside its buffer");
            word = reinterpret_cast<uint64_t>(buffers[word].memory.get() + offset);
        }
        if (!line) bad("a launch line ends early: " + l);
        launch(launched, words.data(), order);
    }
    std::ofstream out(words[2], std::ios::binary);
    for (Buffer& b : buffers) out.write(reinterpret_cast<const char*>(b.memory.get()), static_cast<std::streamsize>(b.bytes));
    out.close();
    if (!out) bad("cannot write the result");
    return 0;
}
