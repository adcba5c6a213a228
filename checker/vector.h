/* SPDX-License-Identifier: MIT
 *
 * Loops of a fixed length over bytes of tables, which compilers make vectors of.
 *
 * On x86 such a function is compiled twice and the processor chooses when the program starts;
 * elsewhere it is what the compiler makes of it, and everywhere plain C. */
#ifndef CHECKER_VECTOR_H
#define CHECKER_VECTOR_H

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define VECTOR_LOOPS __attribute__((target_clones("avx2", "default")))
#else
#define VECTOR_LOOPS
#endif

#endif
