/* From the TUN device to other nodes.
 *
 *   a packet, or one of up to 64 KB that the kernel did not cut (TSO) ──► datagrams ──► bundles: one send for many
 */
#ifndef LEAVE_H
#define LEAVE_H

#include "outlet.h"
#include "packet.h"
#include "table.h"

enum { BUNDLES = 64, PARTS = 1024, HEADS = 512 };
enum { BUNDLE_COUNT = 64 }; /* UDP_MAX_SEGMENTS of linux/udp.h, before it became 128 */
enum { BUNDLE_BYTES = 65535 - 20 - 8 }; /* all of it is one IP packet at first */

struct leaving {
    struct outlet *outlet;
    const struct table *table;
    size_t most; /* datagrams in a bundle: 1 where the kernel has no UDP_SEGMENT */
    size_t bundle_count, part_count, head_count;
    struct bundle bundles[BUNDLES];
    struct iovec parts[PARTS];
    uint8_t heads[HEADS][MOST_HEADERS + 8];
};

/* A frame of the device: struct virtio_net_hdr and a packet, which is changed and must stay until `leave_all`. */
void leave(struct leaving *leaving, uint8_t *frame, size_t len);
void leave_all(struct leaving *leaving);

#endif
