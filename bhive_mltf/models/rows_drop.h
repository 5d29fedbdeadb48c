/* Of dropout: which elements stay is a hash of their number and a key, so that nothing has to be remembered. */
#include <stdint.h>

typedef struct {
    uint64_t key;
    uint32_t bound;
} Drop;
