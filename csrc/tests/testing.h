// What the C++ tests share. A test is a function; a test program lists its own in main:
//
//     int main() {
//       RUN_TEST(widening_is_exact);
//       return testing::finish();
//     }
//
// One line per test; the program returns 1 if any check of any test failed.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <sstream>
#include <string>

namespace testing {

constexpr int kShownFailures = 5;  // per test; the rest are counted

struct Tally {
  const char* test = "";
  int failed_checks = 0;  // of the running test
  int failed_tests = 0;
  int tests = 0;
};

inline Tally& tally() {
  static Tally value;
  return value;
}

template <typename... Parts>
void fail(const char* file, int line, const Parts&... parts) {
  if (++tally().failed_checks > kShownFailures) return;
  std::ostringstream text;
  text.precision(17);
  (text << ... << parts);
  std::printf("  %s:%d: %s\n", file, line, text.str().c_str());
}

template <typename Function>
void run(const char* name, Function function) {
  tally().test = name;
  tally().failed_checks = 0;
  ++tally().tests;
  const auto start = std::chrono::steady_clock::now();
  try {
    function();
  } catch (const std::exception& error) {
    fail(name, 0, "threw ", error.what());
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (tally().failed_checks != 0) ++tally().failed_tests;
  std::printf("%s %s (%.2f s)", tally().failed_checks == 0 ? "ok  " : "FAIL", name, seconds);
  if (tally().failed_checks > kShownFailures) std::printf(": %d checks failed", tally().failed_checks);
  std::printf("\n");
  std::fflush(stdout);
}

inline int finish() {
  std::printf("%d tests, %d failed\n", tally().tests, tally().failed_tests);
  return tally().failed_tests == 0 ? 0 : 1;
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Runs `function` in a child process. Returns what it wrote to stderr, with "exit N" or "signal N" as the last line.
template <typename Function>
std::string run_in_child(Function function) {
  int ends[2];
  std::fflush(nullptr);
  if (pipe(ends) != 0) return "no pipe";
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    close(ends[1]);
    int code = 0;
    try {
      function();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "threw %s\n", error.what());
      code = 3;
    }
    std::fflush(nullptr);
    _exit(code);
  }
  close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof(buffer))) > 0;) text.append(buffer, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return text + (WIFSIGNALED(status) ? "signal " + std::to_string(WTERMSIG(status))
                                     : "exit " + std::to_string(WEXITSTATUS(status)));
}

}  // namespace testing

#define RUN_TEST(function) ::testing::run(#function, function)

// EXPECT(condition, parts of a message...)
#define EXPECT(condition, ...)                                                                       \
  do {                                                                                               \
    if (!(condition)) ::testing::fail(__FILE__, __LINE__, #condition, " is false. ", ##__VA_ARGS__); \
  } while (false)

#define EXPECT_EQUAL(got, wanted, ...)                                                                           \
  do {                                                                                                           \
    const auto& got_value = (got);                                                                               \
    const auto& wanted_value = (wanted);                                                                         \
    if (!(got_value == wanted_value)) {                                                                          \
      ::testing::fail(__FILE__, __LINE__, #got, " is ", got_value, ", not ", wanted_value, ". ", ##__VA_ARGS__); \
    }                                                                                                            \
  } while (false)

// The statement throws a std::exception whose text contains `part`.
#define EXPECT_THROWS(statement, part)                                                                           \
  do {                                                                                                           \
    std::string thrown;                                                                                          \
    try {                                                                                                        \
      statement;                                                                                                 \
    } catch (const std::exception& error) {                                                                      \
      thrown = error.what();                                                                                     \
    }                                                                                                            \
    if (!::testing::contains(thrown, part)) {                                                                    \
      ::testing::fail(__FILE__, __LINE__, #statement, " threw '", thrown, "', which does not say '", part, "'"); \
    }                                                                                                            \
  } while (false)
