# The CUDA part of the build: finding nvcc, choosing architectures, compiling the .cu files.
#
# nvcc is called directly: no torch, no GPU and no complete toolkit are needed, only the compiler and the static CUDA
# runtime that belong together. What ptxas says of registers and spills goes to <build>/cuda/*.log.

set(HMSA_DEFAULT_CUDA_ARCHS 80 90 100 120)  # sm_80 code also runs on 86 and 89

# Decides whether CUDA kernels are built. Sets HMSA_WITH_CUDA, and either HMSA_NO_CUDA_REASON or HMSA_NVCC,
# HMSA_NVCC_VERSION, HMSA_CUDA_REAL, HMSA_CUDA_PTX (lists of architectures) and HMSA_NVCC_FLAGS.
macro(hmsa_configure_cuda sources)
  hmsa_setting(HMSA_CUDA auto)
  hmsa_setting(HMSA_CUDA_ARCHS "")
  if(NOT HMSA_CUDA MATCHES "^(0|1|auto)$")
    message(FATAL_ERROR "HMSA_CUDA: expected 0, 1 or auto, got '${HMSA_CUDA}'")
  endif()
  set(HMSA_WITH_CUDA OFF)
  if(HMSA_CUDA STREQUAL "0")
    set(HMSA_NO_CUDA_REASON "HMSA_CUDA=0")
  else()
    hmsa_find_nvcc(HMSA_NVCC)
    if(HMSA_NVCC AND NOT "${sources}" STREQUAL "")
      set(HMSA_WITH_CUDA ON)
      hmsa_read_nvcc_version(HMSA_NVCC_VERSION)
      hmsa_choose_cuda_archs(HMSA_CUDA_REAL HMSA_CUDA_PTX)
      set(HMSA_NVCC_FLAGS -O3 -std=c++17 -DNDEBUG --expt-relaxed-constexpr --Werror cross-execution-space-call)
      if(HMSA_NVCC_VERSION VERSION_GREATER_EQUAL 12.8)
        list(APPEND HMSA_NVCC_FLAGS --compress-mode=size)
      endif()
    elseif(HMSA_NVCC)
      set(HMSA_NO_CUDA_REASON "there are no CUDA sources")
    else()
      set(HMSA_NO_CUDA_REASON "nvcc was not found")
      if(HMSA_CUDA STREQUAL "1")
        message(FATAL_ERROR
          "HMSA_CUDA=1 asks for CUDA kernels, but nvcc was not found "
          "(looked in CUDACXX, CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda and pip's nvidia packages).\n"
          "Install the CUDA compiler, version 12 or newer, in one of two ways:\n"
          "  - NVIDIA's CUDA toolkit for your system; then put its bin folder on PATH, or set CUDA_HOME to its folder;\n"
          "  - pip install \"cuda-toolkit[nvcc,cudart,cccl]\" into the environment that has torch.\n"
          "Or set HMSA_CUDA=0 to build the CPU kernels only.")
      endif()
    endif()
  endif()
  if(HMSA_WITH_CUDA)
    list(JOIN HMSA_CUDA_REAL ", " real)
    list(JOIN HMSA_CUDA_PTX ", " ptx)
    if(NOT ptx)
      set(ptx none)
    endif()
    message(STATUS "hmsa_ext: CPU and CUDA kernels (nvcc ${HMSA_NVCC_VERSION}; machine code for ${real}; PTX for ${ptx})")
  else()
    message(STATUS "hmsa_ext: CPU kernels only (${HMSA_NO_CUDA_REASON}); HMSA_CUDA=1 insists on CUDA kernels")
  endif()
endmacro()

# Compiles each .cu file with nvcc and links the objects and the static CUDA runtime into the target.
function(hmsa_add_cuda_sources target sources)
  set(gencode "")
  foreach(arch IN LISTS HMSA_CUDA_REAL)
    list(APPEND gencode -gencode arch=compute_${arch},code=sm_${arch})
  endforeach()
  foreach(arch IN LISTS HMSA_CUDA_PTX)
    list(APPEND gencode -gencode arch=compute_${arch},code=compute_${arch})
  endforeach()
  set(host_compiler ${CMAKE_CXX_COMPILER})
  if(DEFINED ENV{CUDAHOSTCXX})
    set(host_compiler $ENV{CUDAHOSTCXX})
  endif()
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/cuda)
  foreach(source IN LISTS sources)
    get_filename_component(name ${source} NAME_WE)
    set(object ${CMAKE_BINARY_DIR}/cuda/${name}.o)
    # The shell keeps what nvcc prints in a file; the reader sees it only if it holds a warning or the error.
    add_custom_command(
      OUTPUT ${object}
      COMMAND sh -c "\"$@\" >\"$0\" 2>&1 && { ! grep -i warning \"$0\" >&2 || true; } || { cat \"$0\" >&2; exit 1; }"
              ${CMAKE_BINARY_DIR}/cuda/${name}.log
              ${HMSA_NVCC} -c ${source} -o ${object} -MD -MF ${object}.d -ccbin ${host_compiler} ${HMSA_NVCC_FLAGS}
              -Xptxas -v --threads 0 ${gencode} -I${CMAKE_SOURCE_DIR}/csrc
              -Xcompiler=-Wall,-fPIC,-fvisibility=hidden,-ffile-prefix-map=${CMAKE_SOURCE_DIR}=.
      DEPENDS ${source}
      DEPFILE ${object}.d
      COMMENT "nvcc ${name}.cu"
      VERBATIM)
    target_sources(${target} PRIVATE ${object})
    set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  endforeach()
  hmsa_find_static_cudart(cudart)
  find_package(Threads REQUIRED)
  target_link_libraries(${target} PRIVATE ${cudart} Threads::Threads ${CMAKE_DL_LIBS} rt)
endfunction()

# Sets the variable from the environment unless it is given; an empty value counts as not given.
macro(hmsa_setting name default)
  if("${${name}}" STREQUAL "")
    set(${name} "$ENV{${name}}")
  endif()
  if("${${name}}" STREQUAL "")
    set(${name} "${default}")
  endif()
endmacro()

# An explicit choice (CUDACXX, CUDA_HOME, CUDA_PATH) is final: no other nvcc is used if there is none.
function(hmsa_find_nvcc out)
  set(chosen OFF)
  if(NOT "$ENV{CUDACXX}" STREQUAL "")
    set(chosen ON)
    find_program(nvcc NAMES "$ENV{CUDACXX}" NO_CACHE)
  endif()
  foreach(variable CUDA_HOME CUDA_PATH)
    if(NOT chosen AND NOT "$ENV{${variable}}" STREQUAL "")
      set(chosen ON)
      find_program(nvcc NAMES nvcc PATHS "$ENV{${variable}}/bin" NO_DEFAULT_PATH NO_CACHE)
    endif()
  endforeach()
  if(NOT chosen)
    find_program(nvcc NAMES nvcc NO_CACHE)
    if(NOT nvcc)
      file(GLOB pip_folders "${HMSA_TORCH_DIR}/../nvidia/cu*/bin" "${HMSA_TORCH_DIR}/../nvidia/cuda_nvcc/bin")
      find_program(nvcc NAMES nvcc PATHS /usr/local/cuda/bin ${pip_folders} NO_DEFAULT_PATH NO_CACHE)
    endif()
  endif()
  if(NOT nvcc)
    set(nvcc "")
  endif()
  set(${out} "${nvcc}" PARENT_SCOPE)
endfunction()

function(hmsa_read_nvcc_version out)
  execute_process(COMMAND ${HMSA_NVCC} --version OUTPUT_VARIABLE text ERROR_VARIABLE error RESULT_VARIABLE status)
  if(status OR NOT text MATCHES "V([0-9]+\\.[0-9]+\\.[0-9]+)")
    message(FATAL_ERROR "${HMSA_NVCC} --version failed: ${text}${error}\nHMSA_CUDA=0 builds the CPU kernels only.")
  endif()
  set(${out} ${CMAKE_MATCH_1} PARENT_SCOPE)
endfunction()

# Architectures to make machine code for, and those to embed PTX for: HMSA_CUDA_ARCHS ("80;90a+PTX", "8.0 12.0+PTX"),
# or the defaults that this nvcc knows, with PTX for the newest.
function(hmsa_choose_cuda_archs real_out ptx_out)
  execute_process(COMMAND ${HMSA_NVCC} --list-gpu-arch OUTPUT_VARIABLE text ERROR_VARIABLE error RESULT_VARIABLE status)
  string(REGEX MATCHALL "compute_[0-9]+" known "${text}")
  list(TRANSFORM known REPLACE "compute_" "")
  if(status OR NOT known)
    message(FATAL_ERROR "${HMSA_NVCC} --list-gpu-arch failed: ${text}${error}")
  endif()
  list(SORT known COMPARE NATURAL)
  list(JOIN known ", " known_text)
  set(real "")
  set(ptx "")
  if(HMSA_CUDA_ARCHS STREQUAL "")
    foreach(arch IN LISTS HMSA_DEFAULT_CUDA_ARCHS)
      if(arch IN_LIST known)
        list(APPEND real ${arch})
        set(ptx ${arch})
      endif()
    endforeach()
    if(NOT real)
      message(FATAL_ERROR "nvcc ${HMSA_NVCC_VERSION} knows none of ${HMSA_DEFAULT_CUDA_ARCHS}, only ${known_text}: "
                          "choose with HMSA_CUDA_ARCHS, or set HMSA_CUDA=0 to build the CPU kernels only")
    endif()
  else()
    string(REGEX REPLACE "[ ,]+" ";" wanted "${HMSA_CUDA_ARCHS}")
    foreach(entry IN LISTS wanted)
      if(entry STREQUAL "")
        continue()
      endif()
      if(NOT entry MATCHES "^([0-9]+)\\.?([0-9])([af]?)(\\+PTX)?$")
        message(FATAL_ERROR "HMSA_CUDA_ARCHS: expected architectures such as 80;90+PTX, got '${entry}'")
      endif()
      set(arch "${CMAKE_MATCH_1}${CMAKE_MATCH_2}")
      set(suffix "${CMAKE_MATCH_3}")
      set(with_ptx "${CMAKE_MATCH_4}")
      if(NOT arch IN_LIST known)
        message(FATAL_ERROR "HMSA_CUDA_ARCHS: nvcc ${HMSA_NVCC_VERSION} does not know ${arch}; it knows ${known_text}")
      endif()
      list(APPEND real ${arch}${suffix})
      if(with_ptx)
        list(APPEND ptx ${arch}${suffix})
      endif()
    endforeach()
    list(REMOVE_DUPLICATES real)
    list(REMOVE_DUPLICATES ptx)
  endif()
  set(${real_out} ${real} PARENT_SCOPE)
  set(${ptx_out} ${ptx} PARENT_SCOPE)
endfunction()

# The runtime that belongs to this nvcc lies where nvcc itself would look: `nvcc` may be a script or a link somewhere else.
function(hmsa_find_static_cudart out)
  execute_process(COMMAND ${HMSA_NVCC} --dryrun -c none.cu OUTPUT_VARIABLE text ERROR_VARIABLE text)
  string(REGEX MATCH "LIBRARIES=[^\n]*" line "${text}")
  string(REGEX MATCHALL "-L[^\" ]+" folders "${line}")
  list(TRANSFORM folders REPLACE "^-L" "")
  string(REGEX MATCH "TOP=[^\n]*" top "${text}")
  string(REPLACE "TOP=" "" top "${top}")
  find_library(library cudart_static PATHS ${folders} "${top}/lib64" "${top}/lib" NO_DEFAULT_PATH NO_CACHE)
  if(NOT library)
    message(FATAL_ERROR "libcudart_static.a was not found beside ${HMSA_NVCC} (looked in ${folders} ${top}/lib64 ${top}/lib): "
                        "install the CUDA runtime's development files (in pip: cuda-toolkit[cudart]); "
                        "HMSA_CUDA=0 builds the CPU kernels only")
  endif()
  set(${out} ${library} PARENT_SCOPE)
endfunction()
