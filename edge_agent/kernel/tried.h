/* What a packet tries, and what answers it: the numbers beside a row's columns (kernel.h, MISSING AND OPENED). */
#ifndef BOTWATCH_TRIED_H
#define BOTWATCH_TRIED_H

#include "state.h"

#include <math.h>

/* Decide what a packet adds to and takes from the numbers beside its columns (kernel.h, MISSING AND OPENED). Its NEW_* flags
 * are set; t is its steady time. */
static inline void choose_numbers(struct row_meta *row, struct pair *pair, int way, bool reply, int64_t t, struct step *s)
{
    enum { SYN = 2, ACK = 16, ANSWERED = 200 };
    struct channel *channel = &pair->channel;
    bool v4 = row->ip_version == 4, odd = row->flags & (ARP | ICMP_QUOTED); /* few branches: most would not be foreseen */
    bool group = (row->dst_mac >> 40 & 1) | (row->dst[0] >= (v4 ? 224 : 255));
    s->device->heard |= reply;
    s->answers = s->device->heard & (row->ip_version != 0) & !odd & !group ? ANSWERED : INFINITY;
    s->opens = s->fails = 0;
    s->tries = (row->proto == IP_TCP) & ((row->flags & PORTS) != 0);
    s->login = s->tries & login_port(row->dport);
    s->ping = false;
    if (s->tries & ((row->tcp_flags & (SYN | ACK)) == SYN) & ((row->flags & NEW_SOCKET) != 0)) {
        s->opens = s->login | (row->dport != channel->port[way]);
        if (!s->login)
            channel->port[way] = row->dport;
        channel->told |= TOLD_OPENED;
    }
    if (row->flags & ICMP_QUOTED) {
        s->fails = 1;
        channel->told |= TOLD_ERROR;
    } else if (v4 & (row->proto == IP_ICMP) & !odd) {
        struct device *device = s->device;
        s->ping = true;
        s->pings = (row->flags & NEW_PEER) != 0;
        s->ping_gap = t > device->ping_t ? (double)((uint64_t)t - (uint64_t)device->ping_t) * 1e-9 : 0;
        device->ping_t = t > device->ping_t ? t : device->ping_t;
    }
    s->at = (uint8_t)way;
    s->numbers = pair;
    s->row = row;
}

#endif
