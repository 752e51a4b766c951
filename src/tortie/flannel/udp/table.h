/* Which node has which subnet, and whose packets are taken: as the daemon says it, whole, looked up by hashing. */
#ifndef TABLE_H
#define TABLE_H

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>

/* As it comes from the daemon; all in network byte order. `bits` is the prefix length. */
struct entry {
    uint32_t subnet, node;
    uint16_t port;
    uint8_t bits, zero;
};

struct table;

/* NULL when there is no memory, or an entry is none. `self` is the address of this node's own end. */
struct table *table_new(uint32_t self, const struct entry *entries, size_t count);
void table_free(struct table *table);

uint32_t table_self(const struct table *table);
/* Where a packet to this address goes: the most specific subnet wins. NULL for nowhere. */
const struct sockaddr_in *table_way(const struct table *table, uint32_t address);
/* Whether packets of the host with this address are taken. */
int table_knows(const struct table *table, uint32_t host);

#endif
