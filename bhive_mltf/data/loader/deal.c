/* Jets to ranks, from the most work to the least; `balance.py` does the same without it. */
#include <stdint.h>

/* costs: work of n_jets jets, falling. loads, takers: room for n_ranks numbers. ranks: the rank of each jet. Each round
   gives one jet to each rank, the most work to the rank with the least so far; ties by rank. Returns 0. */
int64_t deal(const int64_t *costs, int64_t n_jets, int64_t n_ranks, int64_t *loads, int64_t *takers, int64_t *ranks)
{
    for (int64_t rank = 0; rank < n_ranks; ++rank)
        loads[rank] = 0;
    for (int64_t first = 0; first < n_jets; first += n_ranks) {
        for (int64_t rank = 0; rank < n_ranks; ++rank) {
            int64_t place = rank;
            for (; place > 0 && loads[takers[place - 1]] > loads[rank]; --place)
                takers[place] = takers[place - 1];
            takers[place] = rank;
        }
        for (int64_t place = 0; place < n_ranks && first + place < n_jets; ++place) {
            loads[takers[place]] += costs[first + place];
            ranks[first + place] = takers[place];
        }
    }
    return 0;
}
