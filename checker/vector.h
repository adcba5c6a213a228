/* SPDX-License-Identifier: MIT
 *
 * Loops of a fixed length over bytes of tables, which compilers make vectors of.
 *
 * On x86 such a function is compiled twice and the processor chooses when the program starts;
 * elsewhere it is what the compiler makes of it, and everywhere plain C.  A build may define
 * VECTOR_LOOPS itself: not every compiler's pass stands functions that are chosen at the start. */
#ifndef CHECKER_VECTOR_H
#define CHECKER_VECTOR_H

#ifndef VECTOR_LOOPS
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define VECTOR_LOOPS __attribute__((target_clones("avx2", "default")))
#else
#define VECTOR_LOOPS
#endif
#endif

#endif
