// Stacks for fibers, and the change from one to another: what the scheduler in fibers.h stands on.
//
// On x86-64 the change is a few instructions of our own; elsewhere, or with HMSA_HOST_RUN_UCONTEXT defined, it is
// swapcontext. AddressSanitizer is told about every change; HMSA_HOST_RUN_ASAN says that it is there.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define HMSA_HOST_RUN_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HMSA_HOST_RUN_ASAN 1
#endif
#endif
#if defined(HMSA_HOST_RUN_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) && !defined(HMSA_HOST_RUN_UCONTEXT)
#define HMSA_HOST_RUN_UCONTEXT 1
#endif
#if defined(HMSA_HOST_RUN_UCONTEXT)
#include <ucontext.h>
#endif

namespace hmsa {
namespace host_run {

constexpr std::size_t kStackBytes = 256 * 1024;  // of a fiber; reports of the sanitizers are made on it
constexpr std::size_t kStackGuard = 64 * 1024;   // below it; an overflow ends the program there

inline unsigned char* new_stack() {
  void* guard = mmap(nullptr, kStackGuard + kStackBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (guard == MAP_FAILED) throw std::bad_alloc();
  unsigned char* stack = static_cast<unsigned char*>(guard) + kStackGuard;
  if (mprotect(stack, kStackBytes, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  return stack;
}

inline void delete_stack(unsigned char* stack) { munmap(stack - kStackGuard, kStackGuard + kStackBytes); }

// Removes the red zones that frames which never returned have left in the upper `bytes` of a stack.
inline void forget_frames([[maybe_unused]] unsigned char* stack, [[maybe_unused]] std::size_t bytes) {
#if defined(HMSA_HOST_RUN_ASAN)
  __asan_unpoison_memory_region(stack + kStackBytes - bytes, bytes);
#endif
}

#if defined(HMSA_HOST_RUN_UCONTEXT)

struct Context {
  ucontext_t state;
};

inline void prepare(Context& context, unsigned char* stack, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = kStackBytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}

inline void change(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

#else

struct Context {
  void* stack_pointer;
};

// Saves the registers that a callee must keep, leaves this stack for the other, and returns there. Unlike swapcontext
// it makes no system call, and AddressSanitizer does not forget the red zones of the stack it goes to.
__attribute__((naked, noinline)) inline void change_stack([[maybe_unused]] void** from, [[maybe_unused]] void* to) {
  asm("pushq %rbp\n\t"
      "pushq %rbx\n\t"
      "pushq %r12\n\t"
      "pushq %r13\n\t"
      "pushq %r14\n\t"
      "pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %r15\n\t"
      "popq %r14\n\t"
      "popq %r13\n\t"
      "popq %r12\n\t"
      "popq %rbx\n\t"
      "popq %rbp\n\t"
      "ret");
}

inline void prepare(Context& context, unsigned char* stack, void (*entry)()) {
  // Six registers, the address that change_stack returns to, and where a caller's return address would be: the entry
  // finds the stack pointer 8 below a multiple of 16, as after a call.
  void** top = reinterpret_cast<void**>(stack + kStackBytes) - 8;
  std::memset(top, 0, 8 * sizeof(void*));
  top[6] = reinterpret_cast<void*>(entry);
  context.stack_pointer = top;
}

inline void change(Context& from, Context& to) { change_stack(&from.stack_pointer, to.stack_pointer); }

#endif

// Leaves one stack for another. `bottom` and `bytes` are those of the stack gone to; a fiber that has ended gives no
// place for its fake stack (AddressSanitizer's copy of the frames), which is then freed.
inline void leave([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* bottom,
                  [[maybe_unused]] std::size_t bytes) {
#if defined(HMSA_HOST_RUN_ASAN)
  __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
#endif
}

// The first thing on the stack gone to; tells whose stack was left.
inline void arrive([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** from_bottom,
                   [[maybe_unused]] std::size_t* from_bytes) {
#if defined(HMSA_HOST_RUN_ASAN)
  __sanitizer_finish_switch_fiber(fake_stack, from_bottom, from_bytes);
#endif
}

}  // namespace host_run
}  // namespace hmsa
