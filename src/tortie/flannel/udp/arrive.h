/* From other nodes to the TUN device.
 *
 *   a datagram, or many of one size (UDP_GRO) ──► packets ──► trains: those of one connection that follow one another,
 *                                                            written as one that the kernel can cut again exactly
 */
#ifndef ARRIVE_H
#define ARRIVE_H

#include "outlet.h"
#include "packet.h"
#include "table.h"

enum { TRAINS = 8, TRAIN_COUNT = 64 };

struct train {
    uint8_t *first;
    size_t headers, size, total; /* of the headers of one; of the payload of each but the last; of all */
    size_t count;
    uint32_t next; /* TCP sequence number */
    int closed, pushed;
    struct iovec parts[1 + TRAIN_COUNT];
};

struct arriving {
    struct outlet *outlet;
    const struct table *table;
    int merges_tcp, merges_udp; /* whether there are trains of these */
    size_t train_count;
    struct train trains[TRAINS];
};

/* What one call received from `from` (network byte order); `size` is what UDP_GRO said, 0 for one datagram. It is
 * changed, and must stay until `arrive_all`. */
void arrive(struct arriving *arriving, uint32_t from, uint8_t *data, size_t len, size_t size);
void arrive_all(struct arriving *arriving);

#endif
