/* Candidates of chosen jets, from wherever they lie to a padded array; `collate.py` does the same without it. */
#include <stdint.h>
#include <string.h>

enum { AHEAD = 2, LINE = 64 };

static void fetch(const char *first, int64_t size)
{
#ifdef __GNUC__
    for (int64_t byte = 0; byte < size; byte += LINE)
        __builtin_prefetch(first + byte);
#endif
}

/* memory, sizes: pieces of memory. where: the piece of each jet, NULL: all in the first. begins: first byte of each jet
   in its piece. counts: its candidates, of row_bytes each. columns: the numbers of four bytes to take of each candidate,
   NULL: the candidate as it is. out: n_jets times `length` candidates; length -1: jet behind jet, without padding.
   Returns the first jet that would leave its piece of memory or its room in `out`, or -1. */
int64_t pad_jets(const char *const *memory, const int64_t *sizes, const int64_t *where, const int64_t *begins,
                 const int64_t *counts, int64_t n_jets, int64_t row_bytes, const int64_t *columns, int64_t n_columns,
                 int64_t length, char *out)
{
    const int64_t wide = columns ? 4 * n_columns : row_bytes;
    for (int64_t jet = 0; jet < n_jets; ++jet) {
        const int64_t piece = where ? where[jet] : 0, size = counts[jet] * row_bytes;
        const int64_t room = length < 0 ? counts[jet] : length;
        if (counts[jet] < 0 || counts[jet] > room || begins[jet] < 0 || begins[jet] > sizes[piece] - size)
            return jet;
        if (jet + AHEAD < n_jets)
            fetch(memory[where ? where[jet + AHEAD] : 0] + begins[jet + AHEAD], counts[jet + AHEAD] * row_bytes);
        const char *from = memory[piece] + begins[jet];
        if (columns) {
            char *to = out;
            for (const char *end = from + size; from < end; from += row_bytes)
                for (int64_t column = 0; column < n_columns; ++column, to += 4)
                    memcpy(to, from + 4 * columns[column], 4);
        } else {
            memcpy(out, from, (size_t)size);
        }
        memset(out + counts[jet] * wide, 0, (size_t)((room - counts[jet]) * wide));
        out += room * wide;
    }
    return -1;
}
