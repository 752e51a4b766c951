/* See table.h. Two hash tables with open addressing, at most half full; never changed after they are made. */
#include <stdlib.h>

#include "table.h"

struct slot {
    uint32_t subnet;
    uint8_t bits, used;
    struct sockaddr_in to;
};

struct table {
    uint32_t self, mask;
    int lengths;
    uint8_t length[33]; /* prefix lengths that occur, the longest first; usually one */
    struct slot *ways;
    struct slot *hosts; /* of these `subnet` alone is looked at */
};

static uint32_t hashed(uint32_t key, uint32_t bits) {
    uint32_t h = (key ^ bits) * 2654435761u; /* Knuth's multiplicative hashing */
    return h ^ h >> 15;
}

static uint32_t netmask(uint32_t bits) { return bits ? htonl(~0u << (32 - bits)) : 0; }

static struct slot *place(struct slot *slots, uint32_t mask, uint32_t key, uint8_t bits) {
    uint32_t at = hashed(key, bits) & mask;
    while (slots[at].used && (slots[at].subnet != key || slots[at].bits != bits))
        at = (at + 1) & mask;
    return &slots[at];
}

struct table *table_new(uint32_t self, const struct entry *entries, size_t count) {
    size_t room = 4;
    while (room < count * 2)
        room *= 2;
    struct table *made = calloc(1, sizeof *made);
    if (!made)
        return NULL;
    made->self = self;
    made->mask = (uint32_t)(room - 1);
    made->ways = calloc(room, sizeof *made->ways);
    made->hosts = calloc(room, sizeof *made->hosts);
    int ok = made->ways && made->hosts;
    uint8_t seen[33] = {0};
    for (size_t i = 0; ok && i < count; i++) {
        struct entry one = entries[i];
        ok = one.bits <= 32 && one.port && one.node;
        if (!ok)
            break;
        seen[one.bits] = 1;
        uint32_t subnet = one.subnet & netmask(one.bits);
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = one.port, .sin_addr = {one.node}};
        *place(made->ways, made->mask, subnet, one.bits) = (struct slot){subnet, one.bits, 1, to};
        *place(made->hosts, made->mask, one.node, 32) = (struct slot){one.node, 32, 1, to};
    }
    if (!ok) {
        table_free(made);
        return NULL;
    }
    for (int bits = 32; bits >= 0; bits--)
        if (seen[bits])
            made->length[made->lengths++] = (uint8_t)bits;
    return made;
}

void table_free(struct table *table) {
    if (!table)
        return;
    free(table->ways);
    free(table->hosts);
    free(table);
}

uint32_t table_self(const struct table *table) { return table->self; }

const struct sockaddr_in *table_way(const struct table *table, uint32_t address) {
    for (int i = 0; i < table->lengths; i++) {
        uint8_t bits = table->length[i];
        const struct slot *found = place(table->ways, table->mask, address & netmask(bits), bits);
        if (found->used)
            return &found->to;
    }
    return NULL;
}

int table_knows(const struct table *table, uint32_t host) { return place(table->hosts, table->mask, host, 32)->used; }
