/* Gives memory of the whole process back to the system that is not needed while the agent runs.
 *
 * The start reads far more than running does: relocation, imports and a model's preparation touch most pages of the libraries,
 * and the system maps sixteen pages for each one touched. They stay resident until memory is short, though most are never used
 * again. A page that is given back and used again costs one page fault: it is in the system's cache, or is read from the
 * library again. Only pages that were never written are given back, so nothing can be lost. */
#define _GNU_SOURCE
#include "kernel.h"

#include <malloc.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

/* Blocks of at least this size are mapped on their own and go back to the system when they are freed. Otherwise glibc would
 * raise this threshold to the largest block that was ever freed, a batch of rows, and keep more than that of its heap. */
enum { OWN_BLOCK = 1 << 18 };

struct mapping {
    unsigned long from, to;
    bool whole; /* a file's pages, private and only to read or run, none of which was written */
};

static void release(const struct mapping *m)
{
    if (m->whole && m->to > m->from)
        madvise((void *)m->from, m->to - m->from, MADV_DONTNEED);
}

void memory_give_back(void)
{
#ifdef __GLIBC__
    mallopt(M_ARENA_MAX, 1);
    mallopt(M_MMAP_THRESHOLD, OWN_BLOCK);
    mallopt(M_TRIM_THRESHOLD, OWN_BLOCK);
    malloc_trim(0);
#endif
    FILE *smaps = fopen("/proc/self/smaps", "re");
    if (smaps == NULL)
        return; /* without /proc nothing is given back */
    struct mapping now = {0};
    char line[512], rights[8], name[8];
    while (fgets(line, sizeof line, smaps) != NULL) {
        unsigned long from, to, kb;
        int found = sscanf(line, "%lx-%lx %7s %*s %*s %*s %7s", &from, &to, rights, name);
        if (found >= 3) {
            release(&now);
            now = (struct mapping){from, to, found == 4 && name[0] == '/' && strncmp(name, "/dev/", 5) != 0 &&
                                                 rights[1] == '-' && rights[3] == 'p'};
        } else if (sscanf(line, "Anonymous: %lu", &kb) == 1 && kb > 0)
            now.whole = false;
    }
    release(&now);
    fclose(smaps);
}
