/* See packet.h. */
#include "packet.h"

uint64_t sum(const uint8_t *at, size_t len, uint64_t so_far) {
    uint64_t total = so_far, carries = 0, words[4];
    for (; len >= sizeof words; len -= sizeof words, at += sizeof words) {
        memcpy(words, at, sizeof words);
        for (int i = 0; i < 4; i++)
            carries += __builtin_add_overflow(total, words[i], &total);
    }
    for (size_t part; len; len -= part, at += part) {
        uint16_t word = 0;
        part = len > 1 ? 2 : 1;
        memcpy(&word, at, part);
        carries += __builtin_add_overflow(total, word, &total);
    }
    carries = __builtin_add_overflow(total, carries, &total);
    return total + carries;
}

uint16_t folded(uint64_t sum) {
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

uint64_t pseudo_header(const uint8_t *packet, size_t len) {
    uint8_t rest[4] = {0, packet[IPV4_PROTOCOL]};
    put16(rest + 2, (uint32_t)len);
    return sum(packet + IPV4_FROM, 8, sum(rest, sizeof rest, 0));
}

void pass_on(uint8_t *packet) {
    uint32_t old = get16(packet + IPV4_TTL), new = old - 0x100;
    uint32_t check = (uint16_t)~get16(packet + IPV4_CHECK) + (uint16_t)~old + new;
    check = (check & 0xffff) + (check >> 16);
    check = (check & 0xffff) + (check >> 16);
    packet[IPV4_TTL] = (uint8_t)(new >> 8);
    put16(packet + IPV4_CHECK, (uint16_t)~check);
}

/* Whether an error may be told about it: not about errors, for they would be told of forever. */
static int may_be_told(const uint8_t *packet, size_t header) {
    uint32_t from = get32(packet + IPV4_FROM), to = get32(packet + IPV4_TO);
    if (from >> 28 >= 14 || from >> 24 == 0 || from >> 24 == 127 || to >> 28 >= 14)
        return 0;
    if (get16(packet + IPV4_FRAGMENT) & 0x1fff || folded(sum(packet, header, 0)) != 0xffff)
        return 0;
    if (packet[IPV4_PROTOCOL] != ICMP)
        return 1;
    if (get16(packet + IPV4_TOTAL) == header)
        return 0;
    int type = packet[header];
    return type == 0 || type == 8 || type == 13 || type == 14; /* echo and timestamp */
}

size_t icmp_about(uint8_t made[ICMP_MOST], uint32_t kind, const uint8_t *packet, size_t len, uint32_t self) {
    size_t header = ip_header(packet, len);
    if (!header || !may_be_told(packet, header))
        return 0;
    size_t total = get16(packet + IPV4_TOTAL), quoted = total < header + 8 ? total : header + 8;
    memset(made, 0, IPV4_HEADER + 8);
    made[0] = 0x45;
    made[1] = 0xc0; /* internetwork control, RFC 1812 4.3.2.5 */
    put16(made + IPV4_TOTAL, (uint32_t)(IPV4_HEADER + 8 + quoted));
    made[IPV4_TTL] = ICMP_TTL;
    made[IPV4_PROTOCOL] = ICMP;
    memcpy(made + IPV4_FROM, &self, sizeof self);
    memcpy(made + IPV4_TO, packet + IPV4_FROM, 4);
    put_check(made + IPV4_CHECK, sum(made, IPV4_HEADER, 0));
    put16(made + IPV4_HEADER, kind);
    memcpy(made + IPV4_HEADER + 8, packet, quoted);
    put_check(made + IPV4_HEADER + 2, sum(made + IPV4_HEADER, 8 + quoted, 0));
    return IPV4_HEADER + 8 + quoted;
}
