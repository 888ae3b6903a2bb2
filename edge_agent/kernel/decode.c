/* One frame -> struct row_meta. Every byte is reached through a struct span, whose end is the captured end or, inside an IP
 * packet, the packet's own end, so that Ethernet padding is never read as ports. */
#include "kernel.h"

#include <string.h>

enum { ICMP = 1, TCP = 6, UDP = 17, ICMPV6 = 58 };

enum { MAX_TAGS = 8, MAX_EXTENSIONS = 16 };

struct span {
    const uint8_t *at, *end, *frame;
};

static size_t left(struct span s)
{
    return (size_t)(s.end - s.at);
}

/* Note that the headers end `more` bytes after this point. */
static void headers_until(struct row_meta *row, struct span s, size_t more)
{
    size_t length = (size_t)(s.at - s.frame) + (more < left(s) ? more : left(s));
    row->headers = (uint8_t)(length < UINT8_MAX ? length : UINT8_MAX);
}

static uint16_t be16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static uint64_t mac(const uint8_t *p)
{
    return (uint64_t)be16(p) << 32 | (uint64_t)be16(p + 2) << 16 | be16(p + 4);
}

/* Write an IPv4 address in one store of eight bytes, four of them zero: the statistics soon read it in words of eight. */
static void put_ipv4(uint8_t address[16], const uint8_t *p)
{
    uint64_t word = 0;
    memcpy(&word, p, 4);
    memcpy(address, &word, 8);
}

/* Inline, since decode_frame() calls it for every packet; kernel.h's declaration makes it a function for others, too. */
inline enum link_result link_read(int linktype, const uint8_t *frame, uint32_t captured, struct link_header *header)
{
    enum { ETHERNET_BYTES = 14, SLL_BYTES = 16, SLL2_BYTES = 20, MAC_BYTES = 6, PACKET_OUTGOING = 4 };
    *header = (struct link_header){0};
    switch (linktype) {
    case LINK_ETHERNET:
        if (captured < ETHERNET_BYTES)
            return LINK_SHORT;
        header->length = ETHERNET_BYTES;
        header->dst_mac = mac(frame);
        header->src_mac = mac(frame + 6);
        header->type = be16(frame + 12);
        return LINK_WHOLE;
    case LINK_SLL:
        if (captured < SLL_BYTES)
            return LINK_SHORT;
        header->length = SLL_BYTES;
        header->direction = be16(frame) == PACKET_OUTGOING ? SENT : RECEIVED;
        if (be16(frame + 4) == MAC_BYTES)
            header->src_mac = mac(frame + 6);
        header->type = be16(frame + 14);
        return LINK_WHOLE;
    case LINK_SLL2:
        if (captured < SLL2_BYTES)
            return LINK_SHORT;
        header->length = SLL2_BYTES;
        header->direction = frame[10] == PACKET_OUTGOING ? SENT : RECEIVED;
        if (frame[11] == MAC_BYTES)
            header->src_mac = mac(frame + 12);
        header->type = be16(frame);
        return LINK_WHOLE;
    case LINK_DLT_RAW: case LINK_DLT_RAW_BSD: case LINK_RAW: case LINK_IPV4: case LINK_IPV6:
        /* No header that could be short: the IP version says which of the two it is. */
        header->type = captured > 0 && frame[0] >> 4 == 6 ? TYPE_IPV6 : TYPE_IPV4;
        return LINK_WHOLE;
    default:
        return LINK_UNSUPPORTED;
    }
}

bool link_supported(int linktype)
{
    struct link_header header;
    return link_read(linktype, NULL, 0, &header) != LINK_UNSUPPORTED;
}

static void set_ports(struct row_meta *row, enum port_class *ports, const uint8_t *p)
{
    row->sport = be16(p);
    row->dport = be16(p + 2);
    row->flags |= PORTS;
    *ports = WITH_PORTS;
}

/* Skip IPv6 extension headers (RFC 8200; AH: RFC 4302). *next becomes the protocol at s->at; *later becomes true for all but
 * the first fragment. */
static enum malformed skip_extensions(struct span *s, uint8_t *next, bool *fragment, bool *later)
{
    for (int i = 0; i < MAX_EXTENSIONS; i++) {
        size_t length;
        switch (*next) {
        case 0: case 43: case 60: case 135: case 139: case 140:
            if (left(*s) < 8)
                return SHORT_TRANSPORT;
            length = ((size_t)s->at[1] + 1) * 8;
            break;
        case 51:
            if (left(*s) < 8)
                return SHORT_TRANSPORT;
            length = ((size_t)s->at[1] + 2) * 4;
            break;
        case 44:
            if (left(*s) < 8)
                return SHORT_TRANSPORT;
            length = 8;
            *fragment = *fragment || (be16(s->at + 2) & 0xfff9) != 0;
            if ((be16(s->at + 2) & 0xfff8) != 0) {
                *next = s->at[0];
                *later = true;
                return WELL_FORMED;
            }
            break;
        default:
            return WELL_FORMED;
        }
        *next = s->at[0];
        if (left(*s) < length)
            return SHORT_TRANSPORT;
        s->at += length;
    }
    return LONG_CHAIN;
}

/* The ports of the packet that an ICMP error quotes, if it has any; `s` is at the quoted IP header. */
static enum malformed quoted(int version, struct span s, struct row_meta *row, enum port_class *ports)
{
    uint8_t proto;
    bool fragment = false, later = false;
    if (version == 4) {
        if (left(s) < 20)
            return SHORT_QUOTE;
        size_t header = (size_t)(s.at[0] & 15) * 4;
        if (s.at[0] >> 4 != 4 || header < 20 || left(s) < header)
            return SHORT_QUOTE;
        proto = s.at[9];
        later = (be16(s.at + 6) & 0x1fff) != 0;
        s.at += header;
    } else {
        if (left(s) < 40 || s.at[0] >> 4 != 6)
            return SHORT_QUOTE;
        proto = s.at[6];
        s.at += 40;
        if (skip_extensions(&s, &proto, &fragment, &later) != WELL_FORMED)
            return SHORT_QUOTE;
    }
    headers_until(row, s, later ? 0 : 8);
    if (later || (proto != TCP && proto != UDP))
        return WELL_FORMED;
    if (left(s) < 4)
        return SHORT_QUOTE;
    set_ports(row, ports, s.at);
    row->flags |= ICMP_QUOTED;
    return WELL_FORMED;
}

static enum malformed transport(struct span s, struct row_meta *row, enum port_class *ports)
{
    switch (row->proto) {
    case TCP:
        if (left(s) < 4)
            return SHORT_TRANSPORT;
        set_ports(row, ports, s.at);
        headers_until(row, s, 20);
        if (left(s) < 14)
            return SHORT_TRANSPORT;
        headers_until(row, s, (size_t)(s.at[12] >> 4) * 4);
        row->tcp_flags = s.at[13];
        return WELL_FORMED;
    case UDP:
        headers_until(row, s, 8);
        if (left(s) < 4)
            return SHORT_TRANSPORT;
        set_ports(row, ports, s.at);
        return WELL_FORMED;
    case ICMP: /* errors: unreachable, source quench, redirect, time exceeded, parameter problem (RFC 792) */
        if (row->ip_version != 4)
            return WELL_FORMED;
        *ports = ICMP_PORTS;
        headers_until(row, s, 8);
        if (left(s) < 1)
            return SHORT_TRANSPORT;
        if ((s.at[0] >= 3 && s.at[0] <= 5) || s.at[0] == 11 || s.at[0] == 12) {
            if (left(s) < 8)
                return SHORT_QUOTE;
            s.at += 8;
            return quoted(4, s, row, ports);
        }
        return WELL_FORMED;
    case ICMPV6: /* errors: types 1 to 4 in use below 128 (RFC 4443) */
        if (row->ip_version != 6)
            return WELL_FORMED;
        headers_until(row, s, 8);
        if (left(s) < 1)
            return SHORT_TRANSPORT;
        if (s.at[0] >= 1 && s.at[0] <= 4) {
            if (left(s) < 8)
                return SHORT_QUOTE;
            s.at += 8;
            return quoted(6, s, row, ports);
        }
        return WELL_FORMED;
    default:
        return WELL_FORMED;
    }
}

static enum malformed ipv4(struct span s, struct row_meta *row, enum port_class *ports)
{
    if (left(s) < 20)
        return SHORT_IP;
    if (s.at[0] >> 4 != 4)
        return BAD_IP;
    row->ip_version = 4;
    row->proto = s.at[9];
    put_ipv4(row->src, s.at + 12);
    put_ipv4(row->dst, s.at + 16);

    size_t header = (size_t)(s.at[0] & 15) * 4, total = be16(s.at + 2);
    headers_until(row, s, header < 20 ? 20 : header);
    if (header < 20 || (total != 0 && total < header)) /* 0: the sender's card cuts a larger packet later (TSO) */
        return BAD_IP;
    if (total != 0 && total < left(s))
        s.end = s.at + total;
    if (be16(s.at + 6) & 0x3fff)
        row->flags |= FRAGMENT;
    if (be16(s.at + 6) & 0x1fff)
        return WELL_FORMED;
    if (left(s) < header)
        return SHORT_TRANSPORT;
    s.at += header;
    return transport(s, row, ports);
}

static enum malformed ipv6(struct span s, struct row_meta *row, enum port_class *ports)
{
    if (left(s) < 40)
        return SHORT_IP;
    if (s.at[0] >> 4 != 6)
        return BAD_IP;
    row->ip_version = 6;
    row->proto = s.at[6];
    memcpy(row->src, s.at + 8, 16);
    memcpy(row->dst, s.at + 24, 16);

    size_t payload = be16(s.at + 4);
    s.at += 40;
    headers_until(row, s, 0);
    if (payload != 0 && payload < left(s)) /* 0: a jumbogram */
        s.end = s.at + payload;
    bool fragment = false, later = false;
    enum malformed fault = skip_extensions(&s, &row->proto, &fragment, &later);
    headers_until(row, s, later ? 8 : 0);
    if (fragment)
        row->flags |= FRAGMENT;
    if (fault != WELL_FORMED || later)
        return fault;
    return transport(s, row, ports);
}

static enum malformed arp(struct span s, struct row_meta *row, enum port_class *ports)
{
    row->flags |= ARP;
    *ports = ARP_PORTS;
    headers_until(row, s, 28);
    if (left(s) < 8)
        return SHORT_ARP;
    if (be16(s.at + 2) != TYPE_IPV4 || s.at[4] != 6 || s.at[5] != 4)
        return BAD_ARP;
    if (left(s) < 28)
        return SHORT_ARP;
    row->ip_version = 4;
    put_ipv4(row->src, s.at + 14);
    put_ipv4(row->dst, s.at + 24);
    return WELL_FORMED;
}

/* Read the network layer; `s` begins after the EtherType `type`. */
static enum malformed network(struct span s, uint16_t type, struct row_meta *row, enum port_class *ports)
{
    for (int i = 0; i < MAX_TAGS; i++) {
        row->ethertype = type;
        headers_until(row, s, 0);
        switch (type) {
        case TYPE_IPV4:
            return ipv4(s, row, ports);
        case TYPE_IPV6:
            return ipv6(s, row, ports);
        case TYPE_ARP:
            return arp(s, row, ports);
        case TYPE_VLAN: case TYPE_QINQ: case TYPE_QINQ_OLD:
            if (left(s) < 4)
                return SHORT_TAG;
            type = be16(s.at + 2);
            s.at += 4;
            break;
        case TYPE_PPPOE: { /* RFC 2516; the PPP protocol may be compressed to its odd byte (RFC 1661) */
            if (left(s) < 7)
                return SHORT_TAG;
            uint16_t ppp = s.at[6];
            size_t header = 7;
            if ((ppp & 1) == 0) {
                if (left(s) < 8)
                    return SHORT_TAG;
                ppp = be16(s.at + 6);
                header = 8;
            }
            s.at += header;
            if (ppp == 0x0021)
                type = TYPE_IPV4;
            else if (ppp == 0x0057)
                type = TYPE_IPV6;
            else
                return WELL_FORMED;
            break;
        }
        default:
            if (type >= TYPE_802_3 || left(s) < 3 || s.at[0] != 0xaa || s.at[1] != 0xaa || s.at[2] != 3)
                return WELL_FORMED;
            if (left(s) < 8) /* SNAP (RFC 1042): LLC, organisation 0, EtherType */
                return SHORT_TAG;
            if (s.at[3] | s.at[4] | s.at[5] || be16(s.at + 6) < TYPE_802_3)
                return WELL_FORMED;
            type = be16(s.at + 6);
            s.at += 8;
        }
    }
    return LONG_CHAIN;
}

static void put_mac(uint8_t address[16], uint64_t value)
{
    for (int i = 0; i < 6; i++)
        address[i] = (uint8_t)(value >> (40 - 8 * i));
}

enum malformed decode_frame(int linktype, const uint8_t *frame, uint32_t captured, uint32_t wire_length,
                            struct row_meta *row, enum port_class *ports)
{
    struct span s = {frame, frame + captured, frame};
    struct link_header link;
    enum malformed fault;

    if (link_read(linktype, frame, captured, &link) != LINK_WHOLE)
        return SHORT_LINK;
    memset(row, 0, sizeof *row);
    row->length = wire_length;
    row->src_mac = link.src_mac;
    row->dst_mac = link.dst_mac;
    *ports = NO_PORTS;
    s.at += link.length;
    fault = network(s, link.type, row, ports);
    if (row->ip_version == 0) {
        put_mac(row->src, row->src_mac);
        put_mac(row->dst, row->dst_mac);
    }
    if (fault != WELL_FORMED)
        row->flags |= TRUNCATED;
    return fault;
}
