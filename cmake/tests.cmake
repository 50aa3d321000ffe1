# C++ tests: csrc/tests/test_*.cpp, each a program of its own that returns 0, once as the library is compiled and once
# under AddressSanitizer and UndefinedBehaviorSanitizer. And hmsa_raw_kernels, a Python module that runs kernels on
# arrays. Tests of .cu files (test_*_cuda.cpp: csrc/host_run runs the kernels on the CPU) are sanitized only: the
# optimised form of such code is nvcc's affair. test_launches plans many problems and executes little: plain only.

# The CPU kernels for tests that call them; a test takes from it only what it uses.
add_library(hmsa_kernels STATIC ${kernel_objects})
set_target_properties(hmsa_kernels PROPERTIES LINKER_LANGUAGE CXX)

# All .cu files as csrc/host_run compiles them, for the test that plans launches of every op.
add_library(hmsa_host_run STATIC ${cuda_sources})
set_source_files_properties(${cuda_sources} PROPERTIES LANGUAGE CXX)
target_link_libraries(hmsa_host_run PRIVATE hmsa_flags)
target_compile_options(hmsa_host_run PRIVATE -UNDEBUG -O1 -Wno-array-bounds
                                             -include ${CMAKE_SOURCE_DIR}/csrc/host_run/cuda_host.h)

file(GLOB test_sources CONFIGURE_DEPENDS csrc/tests/test_*.cpp)
foreach(source IN LISTS test_sources)
  get_filename_component(name ${source} NAME_WE)
  set(variants plain sanitized)
  if(name MATCHES "_cuda$")
    set(variants sanitized)
  elseif(name STREQUAL "test_launches")
    set(variants plain)
  endif()
  foreach(variant IN LISTS variants)
    set(program ${name}_${variant})
    add_executable(${program} ${source})
    target_link_libraries(${program} PRIVATE hmsa_flags hmsa_kernels)
    target_compile_options(${program} PRIVATE -UNDEBUG)
    if(name STREQUAL "test_launches")
      target_link_libraries(${program} PRIVATE hmsa_host_run)
    endif()
    set_target_properties(${program} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
    add_test(NAME ${program} COMMAND ${program})
    if(variant STREQUAL "sanitized")
      target_compile_options(${program} PRIVATE -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined
                                                -fno-sanitize-recover=all)
      target_link_options(${program} PRIVATE -fsanitize=address,undefined)
    else()
      target_compile_options(${program} PRIVATE ${HMSA_CPU_FLAGS})
    endif()
  endforeach()
endforeach()

if(EXISTS ${CMAKE_SOURCE_DIR}/csrc/tests/raw_kernels.cpp)
  find_package(Python 3.10 COMPONENTS Interpreter Development.Module REQUIRED)
  if(NOT pybind11_DIR)
    execute_process(COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir OUTPUT_VARIABLE pybind11_DIR
                    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE status)
    if(status)
      message(FATAL_ERROR "HMSA_BUILD_TESTS needs pybind11: ${Python_EXECUTABLE} -m pip install pybind11")
    endif()
  endif()
  find_package(pybind11 CONFIG REQUIRED)
  pybind11_add_module(hmsa_raw_kernels NO_EXTRAS csrc/tests/raw_kernels.cpp)
  target_link_libraries(hmsa_raw_kernels PRIVATE hmsa_flags hmsa_kernels)
  target_compile_options(hmsa_raw_kernels PRIVATE ${HMSA_CPU_FLAGS})
  set_target_properties(hmsa_raw_kernels PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
endif()
