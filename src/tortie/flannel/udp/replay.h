/* The same decisions on packets from a file, and what would be done into another: for tests, without a kernel. */
#ifndef REPLAY_H
#define REPLAY_H

int replay(void);

#endif
