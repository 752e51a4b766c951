/* Where what was decided goes, and what is counted: the kernel (kernel.c) or a file (replay.c). */
#ifndef OUTLET_H
#define OUTLET_H

#include <linux/virtio_net.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifndef VIRTIO_NET_HDR_GSO_UDP_L4 /* Linux 6.2 */
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

/* In the order of proxy.py's COUNTERS. Packets and bytes are those that got through. */
enum counter {
    SENT_PACKETS, SENT_BYTES, SENT_CALLS, SENT_NOT_IPV4, SENT_MALFORMED, SENT_UNREACHABLE, SENT_EXPIRED, SENT_REFUSED,
    RECEIVED_PACKETS, RECEIVED_BYTES, RECEIVED_CALLS, RECEIVED_NOT_IPV4, RECEIVED_MALFORMED, RECEIVED_STRANGER,
    RECEIVED_EXPIRED, RECEIVED_REFUSED, LAST_STRANGER, COUNTERS
};

/* One thread writes, others read. */
struct counts {
    _Atomic uint64_t of[COUNTERS];
};

static inline void count_to(struct counts *counts, enum counter which, uint64_t value) {
    atomic_store_explicit(&counts->of[which], value, memory_order_relaxed);
}

static inline void count(struct counts *counts, enum counter which, uint64_t more) {
    count_to(counts, which, atomic_load_explicit(&counts->of[which], memory_order_relaxed) + more);
}

/* Datagrams to one node, all of `size` bytes but the last, which may be shorter: one send with UDP_SEGMENT. */
struct bundle {
    struct sockaddr_in to;
    struct iovec *parts;
    size_t part_count, count, size, bytes;
};

/* Packets for the TUN device that are one to it: its header, the first of them, and the payloads of the others. */
struct written {
    struct virtio_net_hdr head;
    struct iovec *parts; /* the first is for `head` */
    size_t part_count, count, bytes;
};

struct outlet {
    void (*send)(struct outlet *outlet, struct bundle *bundles, size_t count);
    void (*write)(struct outlet *outlet, struct written *packets);
    void (*icmp)(struct outlet *outlet, const uint8_t *packet, size_t len);
    struct counts counts;
};

#endif
