"""What the processor can do, found out by code that any processor can run.

The kernels' own modules hold instructions of their set even in their initialisers: ask here before
importing one.
"""

cdef extern from *:
    """
    #if defined(__x86_64__) || defined(__i386__)
    #include <cpuid.h>
    static int cbn_level(void) {
        unsigned int a, b, c, d;
        __builtin_cpu_init();   /* this and what it answers know of the system's support too */
        if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
              && __builtin_cpu_supports("bmi2") && __get_cpuid(1, &a, &b, &c, &d)
              && (c & bit_F16C)))
            return 1;
        if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
              && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")))
            return 3;
        return 4;
    }
    #else
    static int cbn_level(void) { return 1; }
    #endif
    """
    int cbn_level() noexcept


def level():
    """The level of x86-64 that the processor and the system support: 4, 3, or 1 for any other."""
    return cbn_level()
