/* The rare operation on a seen set: making place for an entry. The look-up is inline in seen.h. */
#include "seen.h"

int seen_room(const uint32_t bucket[WAYS], uint32_t unit, uint64_t *evicted)
{
    int unknown = -1;
    for (int i = WAYS - 1; i >= 0; i--) {
        if (seen_forgotten(bucket[i], unit))
            return i;
        if (unknown < 0 && (bucket[i] & SEEN_KNOWN) == 0)
            unknown = i;
    }
    ++*evicted;
    return unknown >= 0 ? unknown : WAYS - 1;
}
