// Switching between stacks. On x86-64 this takes a dozen instructions, because a barrier switches
// every thread of a block. Elsewhere it uses the C library's contexts, which make a system call each
// time. The address sanitizer is told of every switch on x86-64; elsewhere it intercepts the calls.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)

#if defined(__SANITIZE_ADDRESS__)  // GCC
#define SANITIZED
#elif defined(__has_feature)  // Clang
#if __has_feature(address_sanitizer)
#define SANITIZED
#endif
#endif
#ifdef SANITIZED
#include <sanitizer/common_interface_defs.h>
#endif

struct Context {
    void* stack = nullptr;
#ifdef SANITIZED
    const void* bottom = nullptr;  // the stack's lowest byte
    size_t bytes = 0;
    void* fake = nullptr;  // kept for the sanitizer
#endif
};

// Saves the registers that a call preserves (rbx, rbp, r12 to r15) and the stack pointer in *from,
// and continues where `to` was saved.
extern "C" void paragon_switch(void** from, void* to);
asm(R"(
    .text
    .hidden paragon_switch
    .globl paragon_switch
    .type paragon_switch, @function
paragon_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size paragon_switch, .-paragon_switch
)");

// A context that begins in `main`, which must not return.
static void begin(Context& context, unsigned char* stack, size_t bytes, void (*main)()) {
    uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t(15);
    // as a call leaves it: a return address at a multiple of 16 minus 8, below it the six registers
    uintptr_t* frame = reinterpret_cast<uintptr_t*>(top) - 2;
    frame[0] = reinterpret_cast<uintptr_t>(main);
    frame[1] = 0;
    for (int i = 1; i <= 6; i++) frame[-i] = 0;
    context.stack = frame - 6;
#ifdef SANITIZED
    context.bottom = stack;
    context.bytes = bytes;
#endif
}
static inline void switch_to(Context& from, Context& to) {
#ifdef SANITIZED
    __sanitizer_start_switch_fiber(&from.fake, to.bottom, to.bytes);
#endif
    paragon_switch(&from.stack, to.stack);
#ifdef SANITIZED
    __sanitizer_finish_switch_fiber(from.fake, nullptr, nullptr);
#endif
}
// Loads the part of a stack into the cache that its context continues with; the context of another
// lane runs meanwhile.
static inline void approach(const Context& next) {
    const char* stack = static_cast<const char*>(next.stack);
    __builtin_prefetch(stack, 1);
    __builtin_prefetch(stack + 64, 1);
}
// `main` calls this first. `starter` is the context that starts the first fiber of all.
static inline void begun(Context& starter) {
#ifdef SANITIZED
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    if (starter.bottom) return;
    starter.bottom = bottom;
    starter.bytes = bytes;
#else
    (void)starter;
#endif
}

#else

#include <ucontext.h>

struct Context {
    ucontext_t context;
};
static void begin(Context& c, unsigned char* stack, size_t bytes, void (*main)()) {
    getcontext(&c.context);
    c.context.uc_stack.ss_sp = stack;
    c.context.uc_stack.ss_size = bytes;
    c.context.uc_link = nullptr;
    makecontext(&c.context, main, 0);
}
static void switch_to(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
static void approach(const Context&) {}
static void begun(Context&) {}

#endif
