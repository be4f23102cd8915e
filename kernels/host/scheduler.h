// The interface of the fiber GPU to programs that launch kernels. Depends on nothing.
#pragma once
#include <cstdint>
#include <string>

enum class Order { Forward, Backward, Mixed };

struct alignas(16) Bytes16 {
    unsigned char bytes[16];
};

struct Launch {
    int precision;  // as -DPRECISION
    std::string kernel;
    uint32_t grid[3];
    uint32_t block;   // threads, whole warps
    uint32_t shared;  // bytes
    uint32_t argument_bytes;
};

// Bytes of the struct that a kernel takes; -1 where there is no such kernel.
int argument_bytes(int precision, const std::string& name);

// Runs all blocks of a launch; `arguments` points to the struct that the kernel takes. Ends the
// process with code 3 on a wrong launch.
void launch(const Launch& l, const void* arguments, Order order);
