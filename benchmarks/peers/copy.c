/* The plain copy that others are measured against: memcpy, split evenly over OpenMP threads. */
#include <string.h>

void parallel_copy(char *to, const char *from, size_t bytes, int threads)
{
    if (threads == 1) {
        memcpy(to, from, bytes);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int i = 0; i < threads; i++) {
        size_t start = bytes / threads * i, stop = i + 1 == threads ? bytes : bytes / threads * (i + 1);
        memcpy(to + start, from + start, stop - start);
    }
}
