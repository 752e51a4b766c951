/* See leave.h. */
#include "leave.h"

void leave_all(struct leaving *leaving) {
    if (leaving->bundle_count)
        leaving->outlet->send(leaving->outlet, leaving->bundles, leaving->bundle_count);
    leaving->bundle_count = leaving->part_count = leaving->head_count = 0;
}

static int joins(const struct leaving *leaving, const struct bundle *last, const struct sockaddr_in *to, size_t len) {
    return last->to.sin_addr.s_addr == to->sin_addr.s_addr && last->to.sin_port == to->sin_port &&
           last->count < leaving->most && last->bytes == last->count * last->size && len <= last->size &&
           last->bytes + len <= BUNDLE_BYTES;
}

/* A datagram of one piece, or of two. There is room: `make_room` was asked. */
static void put(struct leaving *leaving, const struct sockaddr_in *to, struct iovec head, struct iovec body) {
    size_t len = head.iov_len + body.iov_len;
    struct bundle *last = leaving->bundle_count ? &leaving->bundles[leaving->bundle_count - 1] : NULL;
    if (!last || !joins(leaving, last, to, len)) {
        last = &leaving->bundles[leaving->bundle_count++];
        *last = (struct bundle){.to = *to, .parts = &leaving->parts[leaving->part_count], .size = len};
    }
    leaving->parts[leaving->part_count++] = head;
    if (body.iov_len)
        leaving->parts[leaving->part_count++] = body;
    last->part_count = (size_t)(&leaving->parts[leaving->part_count] - last->parts);
    last->count++;
    last->bytes += len;
}

static void make_room(struct leaving *leaving) {
    if (leaving->bundle_count == BUNDLES || leaving->part_count + 2 > PARTS || leaving->head_count == HEADS)
        leave_all(leaving);
}

/* What the kernel left to the device: the checksum of TCP or UDP, of which it has the pseudo header's part. */
static int complete(const struct virtio_net_hdr *v, uint8_t *packet, size_t header, size_t total) {
    size_t start = v->csum_start, at = start + v->csum_offset;
    if (start < header || at + 2 > total)
        return 0;
    uint16_t check = (uint16_t)~folded(sum(packet + start, total - start, 0));
    check = check ? check : 0xffff; /* 0 would say that there is none, RFC 768 */
    memcpy(packet + at, &check, sizeof check);
    return 1;
}

/* Bytes of the TCP or UDP header of a packet that is to be cut, 0 when it cannot be. */
static size_t cut_header(const struct virtio_net_hdr *v, const uint8_t *packet, size_t header, size_t total) {
    int type = v->gso_type & ~VIRTIO_NET_HDR_GSO_ECN, tcp = type == VIRTIO_NET_HDR_GSO_TCPV4;
    size_t len = total - header;
    if ((!tcp && type != VIRTIO_NET_HDR_GSO_UDP_L4) || packet[IPV4_PROTOCOL] != (tcp ? TCP : UDP) ||
        is_fragment(packet) || !v->gso_size || len < (tcp ? (size_t)TCP_HEADER : (size_t)UDP_HEADER))
        return 0;
    size_t own = tcp ? (size_t)(packet[header + TCP_OFFSET] >> 4) * 4 : UDP_HEADER;
    return own > len || (tcp && own < TCP_HEADER) ? 0 : own;
}

/* The headers of the piece that begins `done` bytes into the payload and has `part` of its bytes. */
static void head_of_piece(uint8_t *head, size_t header, size_t own, const uint8_t *payload, size_t part) {
    uint8_t *l4 = head + header, *check = l4 + (head[IPV4_PROTOCOL] == TCP ? TCP_CHECK : UDP_CHECK);
    put16(head + IPV4_TOTAL, (uint32_t)(header + own + part));
    put16(head + IPV4_CHECK, 0);
    put_check(head + IPV4_CHECK, sum(head, header, 0));
    put16(check, 0);
    if (head[IPV4_PROTOCOL] == UDP)
        put16(l4 + UDP_LENGTH, (uint32_t)(own + part));
    uint64_t all = sum(payload, part, sum(l4, own, pseudo_header(head, own + part)));
    put_check(check, all);
    if (head[IPV4_PROTOCOL] == UDP && !get16(check))
        put16(check, 0xffff);
}

static void cut(struct leaving *leaving, const struct sockaddr_in *to, size_t size, const uint8_t *packet,
                size_t header, size_t own) {
    size_t total = get16(packet + IPV4_TOTAL), payload = total - header - own, done = 0;
    uint32_t number = 0, tcp = packet[IPV4_PROTOCOL] == TCP;
    do {
        size_t part = payload - done < size ? payload - done : size;
        make_room(leaving);
        uint8_t *head = leaving->heads[leaving->head_count++], *l4 = head + header;
        memcpy(head, packet, header + own);
        head[IPV4_TTL]--;
        put16(head + IPV4_ID, get16(packet + IPV4_ID) + number);
        if (tcp) {
            put32(l4 + TCP_SEQUENCE, get32(l4 + TCP_SEQUENCE) + (uint32_t)done);
            l4[TCP_FLAGS] &= (uint8_t)~((number ? CWR : 0) | (done + part < payload ? FIN | PSH : 0));
        }
        const uint8_t *data = packet + header + own + done;
        head_of_piece(head, header, own, data, part);
        put(leaving, to, (struct iovec){head, header + own}, (struct iovec){(void *)data, part});
        done += part;
        number++;
    } while (done < payload);
}

static void refuse(struct leaving *leaving, uint32_t kind, const uint8_t *packet, size_t len) {
    uint8_t told[ICMP_MOST];
    size_t room = icmp_about(told, kind, packet, len, table_self(leaving->table));
    count(&leaving->outlet->counts, kind == NET_UNREACHABLE ? SENT_UNREACHABLE : SENT_EXPIRED, 1);
    if (room)
        leaving->outlet->icmp(leaving->outlet, told, room);
}

void leave(struct leaving *leaving, uint8_t *frame, size_t len) {
    struct counts *counts = &leaving->outlet->counts;
    struct virtio_net_hdr v;
    if (len <= sizeof v) {
        count(counts, SENT_MALFORMED, 1);
        return;
    }
    memcpy(&v, frame, sizeof v);
    uint8_t *packet = frame + sizeof v;
    size_t header = ip_header(packet, len -= sizeof v), own = 0;
    if (!header) {
        count(counts, packet[0] >> 4 == 4 ? SENT_MALFORMED : SENT_NOT_IPV4, 1);
        return;
    }
    uint32_t address;
    memcpy(&address, packet + IPV4_TO, sizeof address);
    const struct sockaddr_in *to = table_way(leaving->table, address);
    if (!to || packet[IPV4_TTL] <= 1) {
        refuse(leaving, to ? TIME_EXCEEDED : NET_UNREACHABLE, packet, len);
        return;
    }
    size_t total = get16(packet + IPV4_TOTAL);
    int whole = v.gso_type == VIRTIO_NET_HDR_GSO_NONE;
    if (whole ? v.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM && !complete(&v, packet, header, total)
              : !(own = cut_header(&v, packet, header, total))) {
        count(counts, SENT_MALFORMED, 1);
        return;
    }
    if (!whole) {
        cut(leaving, to, v.gso_size, packet, header, own);
        return;
    }
    make_room(leaving);
    pass_on(packet);
    put(leaving, to, (struct iovec){packet, total}, (struct iovec){0});
}
