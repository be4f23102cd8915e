// How a program launches kernels on the fiber GPU. Depends on nothing.
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
    uint32_t arguments;
};

// How many arguments of eight bytes a kernel takes; -1 where there is no such kernel.
int kernel_arguments(int precision, const std::string& name);

// Runs all blocks of a launch; `args` are pointers to the arguments, as the driver takes them. Ends the process with code 3 on a
// wrong launch.
void launch(const Launch& l, void** args, Order order);
