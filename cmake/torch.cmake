# Which torch to build against. Only its headers and two libraries are needed: no find_package(Torch), no `import torch`.

# Sets ${dir_var} to the torch package folder (given, or found beside the interpreter) and ${version_var} to its version.
function(hmsa_find_torch dir_var version_var)
  set(directory "${${dir_var}}")
  if(NOT directory)
    find_program(HMSA_PYTHON NAMES python3 python REQUIRED)
    execute_process(COMMAND ${HMSA_PYTHON} ${CMAKE_SOURCE_DIR}/_build_backend/build_environment.py
                    OUTPUT_VARIABLE directory OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_VARIABLE error RESULT_VARIABLE status)
    if(status)
      message(FATAL_ERROR "HMSA_TORCH_DIR is not set and no torch was found: ${error}"
                          "Install torch >= 2.10, or give -DHMSA_TORCH_DIR=.../site-packages/torch")
    endif()
  endif()
  if(NOT EXISTS "${directory}/include/torch/csrc/stable/library.h" OR NOT EXISTS "${directory}/version.py")
    message(FATAL_ERROR "HMSA_TORCH_DIR: expected the folder of a torch package, version 2.10 or newer, got ${directory}")
  endif()
  file(STRINGS "${directory}/version.py" line REGEX "^__version__")
  string(REGEX REPLACE ".*['\"]([^'\"]+)['\"].*" "\\1" version "${line}")
  string(REGEX MATCH "^[0-9.]+" release "${version}")
  if(release VERSION_LESS 2.10)
    message(FATAL_ERROR "HMSA_TORCH_DIR: expected torch 2.10 or newer, got ${version} in ${directory}")
  endif()
  set(${dir_var} "${directory}" PARENT_SCOPE)
  set(${version_var} "${version}" PARENT_SCOPE)
endfunction()

# Interface library: headers as system headers, and the two libraries that the stable ABI lives in.
function(hmsa_add_torch_library name directory definition)
  add_library(${name} INTERFACE)
  target_include_directories(${name} SYSTEM INTERFACE "${directory}/include")
  target_compile_definitions(${name} INTERFACE ${definition})
  target_compile_options(${name} INTERFACE "-ffile-prefix-map=${directory}/include=torch")
  foreach(library torch_cpu c10)
    find_library(path ${library} PATHS "${directory}/lib" NO_DEFAULT_PATH NO_CACHE REQUIRED)
    target_link_libraries(${name} INTERFACE "${path}")
    unset(path)
  endforeach()
endfunction()
