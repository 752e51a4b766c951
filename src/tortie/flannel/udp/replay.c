/* See replay.h.
 *
 *   stdin    table, packets that leave or arrive, end of a batch, again and again
 *   stdout   datagrams, packets for the device (with struct virtio_net_hdr), ICMP messages; at the end of a batch the
 *            counters
 *
 * Every record is a header and data. Each packet is in memory of its own, so that a sanitizer sees who reads past it.
 */
#include "replay.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arrive.h"
#include "leave.h"

struct record {
    uint8_t kind, zero;
    uint16_t size; /* what UDP_GRO says; the port of a datagram, in network byte order */
    uint32_t host; /* where from, where to, in network byte order; in the end of a batch: 1 for TCP and UDP in trains */
    uint32_t len;
};

enum { MOST_HELD = 4096 };

static uint8_t *held[MOST_HELD];
static size_t held_count;

static void put_record(struct record record, const struct iovec *parts, size_t count) {
    fwrite(&record, sizeof record, 1, stdout);
    for (size_t i = 0; i < count; i++)
        fwrite(parts[i].iov_base, 1, parts[i].iov_len, stdout);
}

static void put_bundles(struct outlet *outlet, struct bundle *bundles, size_t many) {
    for (size_t i = 0; i < many; i++) {
        struct bundle *one = &bundles[i];
        count(&outlet->counts, SENT_PACKETS, one->count);
        count(&outlet->counts, SENT_BYTES, one->bytes);
        struct record head = {.kind = 'D', .size = one->to.sin_port, .host = one->to.sin_addr.s_addr};
        for (size_t part = 0, left = one->bytes; left;) {
            size_t first = part, have = 0;
            while (have < one->size && part < one->part_count)
                have += one->parts[part++].iov_len;
            head.len = (uint32_t)have;
            put_record(head, one->parts + first, part - first);
            left -= have;
        }
    }
}

static void put_written(struct outlet *outlet, struct written *packets) {
    size_t len = 0;
    packets->parts[0] = (struct iovec){&packets->head, sizeof packets->head};
    for (size_t i = 0; i < packets->part_count; i++)
        len += packets->parts[i].iov_len;
    count(&outlet->counts, RECEIVED_PACKETS, packets->count);
    count(&outlet->counts, RECEIVED_BYTES, packets->bytes);
    put_record((struct record){.kind = 'P', .len = (uint32_t)len}, packets->parts, packets->part_count);
}

static void put_icmp(struct outlet *outlet, const uint8_t *packet, size_t len) {
    struct iovec part = {(void *)packet, len};
    (void)outlet;
    put_record((struct record){.kind = 'I', .len = (uint32_t)len}, &part, 1);
}

static void end_of_batch(struct outlet *outlet, struct leaving *leaving, struct arriving *arriving) {
    leave_all(leaving);
    arrive_all(arriving);
    struct iovec part = {&outlet->counts, sizeof outlet->counts};
    put_record((struct record){.kind = 'E', .len = sizeof outlet->counts}, &part, 1);
    memset(&outlet->counts, 0, sizeof outlet->counts);
    while (held_count)
        free(held[--held_count]);
}

/* NULL for a table that is none. */
static struct table *table_of(const uint8_t *data, size_t len, uint32_t self) {
    size_t count = len / sizeof(struct entry);
    struct entry *entries = calloc(count + 1, sizeof *entries);
    if (!entries)
        abort();
    memcpy(entries, data, count * sizeof *entries);
    struct table *made = table_new(self, entries, count);
    free(entries);
    return made;
}

int replay(void) {
    static struct outlet outlet = {.send = put_bundles, .write = put_written, .icmp = put_icmp};
    static struct leaving leaving = {.outlet = &outlet, .most = BUNDLE_COUNT};
    static struct arriving arriving = {.outlet = &outlet, .merges_tcp = 1, .merges_udp = 1};
    struct table *table = table_new(0, NULL, 0);
    struct record head;
    while (table && fread(&head, sizeof head, 1, stdin) == 1) {
        uint8_t *data = malloc(head.len ? head.len : 1);
        if (!data || fread(data, 1, head.len, stdin) != head.len)
            return 2;
        if (held_count == MOST_HELD)
            end_of_batch(&outlet, &leaving, &arriving);
        held[held_count++] = data;
        leaving.table = arriving.table = table;
        if (head.kind == 'L')
            leave(&leaving, data, head.len);
        else if (head.kind == 'A')
            arrive(&arriving, head.host, data, head.len, head.size);
        if (head.kind == 'T') {
            table_free(table);
            table = table_of(data, head.len, head.host);
        }
        if (head.kind == 'T' || head.kind == 'E')
            end_of_batch(&outlet, &leaving, &arriving);
    }
    table_free(table);
    fflush(stdout);
    return ferror(stdout) ? 2 : table ? 0 : 3;
}
