/* What a packet tries, and what answers it: the numbers beside a row's columns (kernel.h, MISSING AND OPENED). */
#ifndef BOTWATCH_TRIED_H
#define BOTWATCH_TRIED_H

#include "state.h"

#include <math.h>

/* Decide what a packet adds to and takes from the numbers beside its columns (kernel.h, MISSING AND OPENED). Its NEW_* flags
 * are set. */
static inline void choose_cell(struct row_meta *row, struct pair *pair, int way, bool reply, struct step *s)
{
    enum { SYN = 2, ACK = 16 };
    struct device *device = s->device;
    struct channel *channel = &pair->channel;
    bool v4 = row->ip_version == 4, tcp = row->proto == IP_TCP, arp = row->flags & ARP; /* no branches: they would not be foreseen */
    bool group = (row->dst_mac >> 40 & 1) | (v4 & (row->dst[0] >= 224)) | (!v4 & (row->dst[0] == 0xff));
    device->heard |= reply;
    s->answers = device->heard & (row->ip_version != 0) & !arp & !group ? tcp ? 20 : 10 : INFINITY;
    s->tries = tcp & ((row->flags & PORTS) != 0);
    s->ping = v4 & (row->proto == IP_ICMP) & ((row->flags & (ARP | ICMP_QUOTED)) == 0);
    bool login = s->tries & login_port(row->dport);
    bool opens = s->tries & ((row->flags & NEW_SOCKET) != 0) & ((row->tcp_flags & (SYN | ACK)) == SYN);
    s->cell = (uint8_t)(2 * way + login);
    s->opens = opens & (login | (row->dport != channel->port[way]));
    s->pings = s->ping & ((row->flags & NEW_PEER) != 0);
    if (opens & !login)
        channel->port[way] = row->dport;
    channel->tried |= opens;
    device->pings |= s->pings > 0;
    s->opened = channel->tried ? pair->opened : NULL;
    s->pinged = device->pings ? device->pinged : NULL;
    row->opened[0] = row->opened[1] = 0;
}

#endif
