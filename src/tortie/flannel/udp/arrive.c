/* See arrive.h. */
#include "arrive.h"

static void write_one(struct arriving *arriving, uint8_t *packet, size_t total) {
    struct iovec parts[2] = {{0}, {packet, total}};
    struct written one = {.parts = parts, .part_count = 2, .count = 1, .bytes = total};
    arriving->outlet->write(arriving->outlet, &one);
}

/* Off it goes: what is one packet as it came, many as one whose checksum the kernel completes. */
static void depart(struct arriving *arriving, struct train *train) {
    if (train->count == 1) {
        write_one(arriving, train->first, train->total);
        return;
    }
    uint8_t *packet = train->first, *l4 = packet + IPV4_HEADER;
    int tcp = packet[IPV4_PROTOCOL] == TCP;
    size_t offset = tcp ? TCP_CHECK : UDP_CHECK;
    put16(packet + IPV4_TOTAL, (uint32_t)train->total);
    put16(packet + IPV4_CHECK, 0);
    put_check(packet + IPV4_CHECK, sum(packet, IPV4_HEADER, 0));
    if (tcp && train->pushed)
        l4[TCP_FLAGS] |= PSH;
    if (!tcp)
        put16(l4 + UDP_LENGTH, (uint32_t)(train->total - IPV4_HEADER));
    uint16_t partial = folded(pseudo_header(packet, train->total - IPV4_HEADER));
    memcpy(l4 + offset, &partial, sizeof partial);
    struct written all = {
        .head = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                 .gso_type = tcp ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_UDP_L4,
                 .hdr_len = (uint16_t)train->headers,
                 .gso_size = (uint16_t)train->size,
                 .csum_start = IPV4_HEADER,
                 .csum_offset = (uint16_t)offset},
        .parts = train->parts,
        .part_count = 1 + train->count,
        .count = train->count,
        .bytes = train->total + (train->count - 1) * train->headers,
    };
    arriving->outlet->write(arriving->outlet, &all);
}

void arrive_all(struct arriving *arriving) {
    for (size_t i = 0; i < arriving->train_count; i++)
        depart(arriving, &arriving->trains[i]);
    arriving->train_count = 0;
}

/* Bytes of headers of a packet that may be in a train, 0 of others. It is whole: `ip_header` says so. */
static size_t mergeable(const struct arriving *arriving, const uint8_t *packet, size_t header, size_t total) {
    const uint8_t *l4 = packet + header;
    size_t len = total - header;
    if (header != IPV4_HEADER || is_fragment(packet))
        return 0;
    if (packet[IPV4_PROTOCOL] == UDP)
        return arriving->merges_udp && len > UDP_HEADER && get16(l4 + UDP_LENGTH) == len && get16(l4 + UDP_CHECK)
                   ? IPV4_HEADER + UDP_HEADER
                   : 0;
    if (packet[IPV4_PROTOCOL] != TCP || !arriving->merges_tcp || len <= TCP_HEADER)
        return 0;
    size_t own = (size_t)(l4[TCP_OFFSET] >> 4) * 4;
    int plain = l4[TCP_FLAGS] & ACK && !(l4[TCP_FLAGS] & (FIN | SYN | RST | URG | CWR));
    return plain && own >= TCP_HEADER && own < len ? IPV4_HEADER + own : 0;
}

static int intact(const uint8_t *packet) {
    size_t len = get16(packet + IPV4_TOTAL) - (size_t)IPV4_HEADER;
    return folded(sum(packet, IPV4_HEADER, 0)) == 0xffff &&
           folded(sum(packet + IPV4_HEADER, len, pseudo_header(packet, len))) == 0xffff;
}

/* Whether cutting the train with it at its end would give this very packet again. */
static int fits(const struct train *train, const uint8_t *packet, size_t headers, size_t total) {
    const uint8_t *first = train->first, *a = first + IPV4_HEADER, *b = packet + IPV4_HEADER;
    size_t payload = total - headers;
    if (train->closed || headers != train->headers || payload > train->size || train->count == TRAIN_COUNT ||
        train->total + payload > MOST_PACKET)
        return 0;
    if (memcmp(first, packet, 2) != 0 || first[IPV4_TTL] != packet[IPV4_TTL] ||
        get16(first + IPV4_FRAGMENT) != get16(packet + IPV4_FRAGMENT) ||
        (uint16_t)(get16(first + IPV4_ID) + train->count) != get16(packet + IPV4_ID))
        return 0;
    if (first[IPV4_PROTOCOL] == TCP &&
        (get32(b + TCP_SEQUENCE) != train->next || memcmp(a + 8, b + 8, 5) != 0 ||
         (a[TCP_FLAGS] | PSH) != (b[TCP_FLAGS] | PSH) || memcmp(a + 14, b + 14, 2) != 0 ||
         memcmp(a + 18, b + 18, headers - IPV4_HEADER - 18) != 0))
        return 0;
    return (train->count > 1 || intact(first)) && intact(packet);
}

static void begin(struct train *train, uint8_t *packet, size_t headers, size_t total) {
    const uint8_t *l4 = packet + IPV4_HEADER;
    *train = (struct train){.first = packet, .headers = headers, .size = total - headers, .total = total, .count = 1};
    train->parts[1] = (struct iovec){packet, total};
    if (packet[IPV4_PROTOCOL] == TCP) {
        train->next = get32(l4 + TCP_SEQUENCE) + (uint32_t)train->size;
        train->closed = l4[TCP_FLAGS] & PSH;
    }
}

static void append(struct train *train, uint8_t *packet, size_t headers, size_t total) {
    size_t payload = total - headers;
    train->pushed = packet[IPV4_PROTOCOL] == TCP && packet[IPV4_HEADER + TCP_FLAGS] & PSH;
    train->closed = train->pushed || payload < train->size;
    train->next += (uint32_t)payload;
    train->total += payload;
    train->parts[1 + train->count++] = (struct iovec){packet + headers, payload};
}

/* The train of the packet's connection, NULL for none; `header` is that of IP. */
static struct train *train_of(struct arriving *arriving, const uint8_t *packet, size_t header) {
    for (size_t i = 0; i < arriving->train_count; i++) {
        const uint8_t *first = arriving->trains[i].first;
        if (memcmp(first + IPV4_FROM, packet + IPV4_FROM, 8) == 0 && /* addresses, ports, protocol */
            memcmp(first + IPV4_HEADER, packet + header, 4) == 0 && first[IPV4_PROTOCOL] == packet[IPV4_PROTOCOL])
            return &arriving->trains[i];
    }
    return NULL;
}

/* Into a train, or by itself; nothing of a connection overtakes what came before it. */
static void board(struct arriving *arriving, uint8_t *packet, size_t header, size_t total) {
    size_t headers = mergeable(arriving, packet, header, total);
    struct train *train = NULL;
    if (is_fragment(packet)) /* of which connection only the first one says */
        arrive_all(arriving);
    else if (total >= header + 4)
        train = train_of(arriving, packet, header);
    if (train && headers && fits(train, packet, headers, total)) {
        append(train, packet, headers, total);
        return;
    }
    if (train)
        depart(arriving, train);
    if (!headers) {
        if (train)
            *train = arriving->trains[--arriving->train_count];
        write_one(arriving, packet, total);
        return;
    }
    if (!train && arriving->train_count == TRAINS)
        arrive_all(arriving);
    begin(train ? train : &arriving->trains[arriving->train_count++], packet, headers, total);
}

static void one(struct arriving *arriving, uint8_t *packet, size_t len) {
    struct counts *counts = &arriving->outlet->counts;
    size_t header = ip_header(packet, len);
    if (!header) {
        count(counts, len && packet[0] >> 4 != 4 ? RECEIVED_NOT_IPV4 : RECEIVED_MALFORMED, 1);
        return;
    }
    if (packet[IPV4_TTL] <= 1) {
        uint8_t told[ICMP_MOST];
        size_t room = icmp_about(told, TIME_EXCEEDED, packet, len, table_self(arriving->table));
        count(counts, RECEIVED_EXPIRED, 1);
        if (room)
            arriving->outlet->icmp(arriving->outlet, told, room);
        return;
    }
    pass_on(packet);
    board(arriving, packet, header, get16(packet + IPV4_TOTAL));
}

void arrive(struct arriving *arriving, uint32_t from, uint8_t *data, size_t len, size_t size) {
    if (!size || size > len)
        size = len;
    if (!table_knows(arriving->table, from)) {
        count(&arriving->outlet->counts, RECEIVED_STRANGER, size ? (len + size - 1) / size : 1);
        count_to(&arriving->outlet->counts, LAST_STRANGER, ntohl(from));
        return;
    }
    if (!len)
        one(arriving, data, 0);
    for (size_t done = 0; done < len; done += size)
        one(arriving, data + done, len - done < size ? len - done : size);
}
