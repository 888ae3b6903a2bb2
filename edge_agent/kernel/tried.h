/* What a packet tries, and what answers it: the numbers beside a row's columns (kernel.h, MISSING AND OPENED). */
#ifndef BOTWATCH_TRIED_H
#define BOTWATCH_TRIED_H

#include "state.h"

#include <math.h>

/* Decide what a packet adds to and takes from the numbers beside its columns (kernel.h, MISSING AND OPENED). Its NEW_* flags
 * are set. There are no branches: they would not be foreseen. */
static inline void choose_numbers(struct row_meta *row, struct pair *pair, int way, bool reply, struct step *s)
{
    enum { SYN = 2, ACK = 16, ANSWERED = 200 };
    struct channel *channel = &pair->channel;
    bool v4 = row->ip_version == 4, tcp = row->proto == IP_TCP, arp = row->flags & ARP, error = row->flags & ICMP_QUOTED;
    bool group = (row->dst_mac >> 40 & 1) | (v4 & (row->dst[0] >= 224)) | (!v4 & (row->dst[0] == 0xff));
    s->device->heard |= reply;
    s->answers = s->device->heard & (row->ip_version != 0) & !arp & !error & !group ? ANSWERED : INFINITY;
    s->fails = error;
    s->tries = tcp & ((row->flags & PORTS) != 0);
    s->login = s->tries & login_port(row->dport);
    bool opens = s->tries & ((row->flags & NEW_SOCKET) != 0) & ((row->tcp_flags & (SYN | ACK)) == SYN);
    s->opens = opens & (s->login | (row->dport != channel->port[way]));
    s->ping = v4 & (row->proto == IP_ICMP) & !arp & !error;
    s->pings = s->ping & ((row->flags & NEW_PEER) != 0);
    if (opens & !s->login)
        channel->port[way] = row->dport;
    channel->told |= (opens ? TOLD_OPENED : 0) | (error ? TOLD_ERROR : 0);
    s->at = (uint8_t)way;
    s->numbers = pair;
    s->row = row;
}

#endif
