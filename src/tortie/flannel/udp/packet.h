/* One IPv4 packet: whether it is one, its TTL, its checksums, and the ICMP message that says why it goes no further.
 *
 * Nothing here touches the world. packet.py says the same in Python, and is what all of this is held against.
 */
#ifndef PACKET_H
#define PACKET_H

#include <arpa/inet.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { IPV4_HEADER = 20, MOST_HEADERS = 60 + 60, MOST_PACKET = 65535 };
enum { IPV4_TOTAL = 2, IPV4_ID = 4, IPV4_FRAGMENT = 6, IPV4_TTL = 8, IPV4_PROTOCOL = 9, IPV4_CHECK = 10 };
enum { IPV4_FROM = 12, IPV4_TO = 16 };
enum { TCP_SEQUENCE = 4, TCP_OFFSET = 12, TCP_FLAGS = 13, TCP_CHECK = 16, TCP_HEADER = 20 };
enum { UDP_LENGTH = 4, UDP_CHECK = 6, UDP_HEADER = 8 };
enum { ICMP = 1, TCP = 6, UDP = 17 };
enum { FIN = 0x01, SYN = 0x02, RST = 0x04, PSH = 0x08, ACK = 0x10, URG = 0x20, CWR = 0x80 };

/* Of RFC 792: type and code in one number. */
enum { NET_UNREACHABLE = 3 << 8, TIME_EXCEEDED = 11 << 8 };
enum { ICMP_MOST = IPV4_HEADER + 8 + 60 + 8, ICMP_TTL = 8 };

/* Numbers of a packet, in the byte order of this machine; where in memory they are does not matter. */
static inline uint16_t get16(const uint8_t *at) { return (uint16_t)(at[0] << 8 | at[1]); }
static inline uint32_t get32(const uint8_t *at) { return (uint32_t)get16(at) << 16 | get16(at + 2); }
static inline void put16(uint8_t *at, uint32_t value) { at[0] = (uint8_t)(value >> 8), at[1] = (uint8_t)value; }
static inline void put32(uint8_t *at, uint32_t value) { put16(at, value >> 16), put16(at + 2, value); }

/* Bytes of its header, 0 when these bytes do not begin with a whole IPv4 packet. */
static inline size_t ip_header(const uint8_t *packet, size_t len) {
    if (len < IPV4_HEADER || packet[0] >> 4 != 4)
        return 0;
    size_t header = (size_t)(packet[0] & 15) * 4, total = get16(packet + IPV4_TOTAL);
    return header < IPV4_HEADER || total < header || total > len ? 0 : header;
}

static inline int is_fragment(const uint8_t *packet) { return get16(packet + IPV4_FRAGMENT) & 0x3fff; }

/* The ones' complement sum of 16 bit words (RFC 1071), not folded: taken 64 bits at a time, in the order of memory, so
 * that it can be stored with memcpy. Pieces but the last are of even length. */
uint64_t sum(const uint8_t *at, size_t len, uint64_t so_far);
uint16_t folded(uint64_t sum);
static inline void put_check(uint8_t *at, uint64_t sum) {
    uint16_t check = (uint16_t)~folded(sum);
    memcpy(at, &check, sizeof check);
}
/* Of TCP and UDP, `len` bytes from behind the IP header: the sum of addresses, protocol and length. */
uint64_t pseudo_header(const uint8_t *packet, size_t len);

/* One hop less: RFC 1624, so that a checksum that was wrong stays wrong. The TTL is 2 at least. */
void pass_on(uint8_t *packet);

/* Writes the ICMP message about a packet, from address `self` (network byte order); its length. 0 when there is to be
 * none (RFC 1812 4.3.2.7): about ICMP that is no question or answer, about fragments but the first, about packets that
 * are from or for more than one host, or whose header is damaged. */
size_t icmp_about(uint8_t made[ICMP_MOST], uint32_t kind, const uint8_t *packet, size_t len, uint32_t self);

#endif
