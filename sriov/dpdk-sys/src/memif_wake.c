/* Sleeping on a memif device.
 *
 * memif's rings have what a sleeper needs: an event descriptor that the sender writes to, unless the receiver has set a
 * flag in the shared ring. DPDK's driver sets the flag when it connects and offers no way to take it back (its
 * rx_queue_intr_enable fails). The flag and the descriptor are reached here by way of the driver's own structures, the
 * beginnings of which are declared below as they are in DPDK 22.11; built with another DPDK, or where anything looks
 * otherwise at run time, there is no waking, and the caller has to look at the queue from time to time. */

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include <rte_ethdev.h>
#include <rte_interrupts.h>
#include <rte_pause.h>
#include <rte_version.h>

/* A receive queue, found once; declared in lib.rs field by field. */
struct fb_memif_queue {
	void *device;
	void *queue;
};

int fb_memif_find(uint16_t port, uint16_t queue, const struct rte_mempool *pool, struct fb_memif_queue *out);
int fb_memif_arm(const struct fb_memif_queue *found);
void fb_memif_disarm(const struct fb_memif_queue *found);

#if RTE_VERSION >= RTE_VERSION_NUM(22, 11, 0, 0) && RTE_VERSION < RTE_VERSION_NUM(22, 12, 0, 0)

#define COOKIE 0x3E31F20
#define FLAG_MASK_INTERRUPT 1
#define MOST_REGIONS 256
#define CACHE_LINE 64

/* What senders and receivers share; the memif protocol fixes it. */
struct ring {
	uint32_t cookie;
	uint16_t flags;
	uint16_t head;
	uint8_t fill[CACHE_LINE - 8];
	uint16_t tail;
};

struct region {
	void *address;
	uint64_t bytes;
};

struct queue {
	struct rte_mempool *pool;
	void *device;
	int direction; /* 0: towards the server, filled at the head; 1: towards the client, returned at the tail */
	uint16_t region;
	uint16_t port;
	uint32_t ring_offset;
	uint16_t last_head;
	uint16_t last_tail;
	void *buffers;
	uint64_t packets;
	uint64_t bytes;
	struct rte_intr_handle *interrupt;
};

struct process {
	struct region *regions[MOST_REGIONS];
	uint16_t count;
};

/* The beginning of struct rte_eth_dev, which DPDK exports for its drivers. */
struct device {
	void *calls[6];
	void *data;
	struct process *process;
};

/* Exported for drivers. */
struct device *rte_eth_dev_get_by_name(const char *name);

/* The ring of a queue, or NULL while nobody is connected. */
static struct ring *ring_of(const struct device *device, const struct queue *queue)
{
	const struct process *process = device->process;
	const struct region *region;
	struct ring *ring;

	if (process == NULL || queue->region >= process->count || process->count > MOST_REGIONS)
		return NULL;
	region = process->regions[queue->region];
	if (region == NULL || region->address == NULL || (uint64_t)queue->ring_offset + sizeof(*ring) > region->bytes)
		return NULL;
	ring = (struct ring *)((uint8_t *)region->address + queue->ring_offset);
	return ring->cookie == COOKIE ? ring : NULL;
}

/* Finds a receive queue of a started port. 0, or what keeps it from being waited for. */
int fb_memif_find(uint16_t port, uint16_t number, const struct rte_mempool *pool, struct fb_memif_queue *out)
{
	struct rte_eth_dev_info info;
	char name[RTE_ETH_NAME_MAX_LEN];
	const struct queue *queue;

	if (rte_eth_dev_info_get(port, &info) != 0 || info.driver_name == NULL ||
	    strcmp(info.driver_name, "net_memif") != 0 || number >= info.nb_rx_queues)
		return -ENOTSUP;
	if (rte_eth_dev_get_name_by_port(port, name) != 0)
		return -ENODEV;
	out->device = rte_eth_dev_get_by_name(name);
	out->queue = rte_eth_fp_ops[port].rxq.data[number];
	queue = out->queue;
	/* What the driver was given, it shows in these places, unless they are others. */
	if (out->device == NULL || queue == NULL || queue->pool != pool || queue->port != port ||
	    queue->interrupt == NULL || (queue->direction & ~1) != 0)
		return -ENOTSUP;
	return 0;
}

/* Whether the receiver of the ring has something to take. */
static int has_work(const struct ring *ring, const struct queue *queue)
{
	if (queue->direction == 0)
		return __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE) != queue->last_head;
	return __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE) != queue->last_tail;
}

/* Asks the sender to tell. Returns the descriptor that is written to when it does, -EAGAIN where something has come already,
 * -ENOTCONN where there is no sender.
 *
 * A sender moves the ring's end and then reads the flag, with nothing between them that keeps the two in order: it can
 * have read the old flag while what it moved is still on its way to memory. So it is looked for some more times, for
 * longer than any processor keeps a write to itself; the caller looks again before long all the same. */
int fb_memif_arm(const struct fb_memif_queue *found)
{
	const struct queue *queue = found->queue;
	struct ring *ring = ring_of(found->device, queue);
	int descriptor = rte_intr_fd_get(queue->interrupt);

	if (ring == NULL || descriptor < 0)
		return -ENOTCONN;
	__atomic_store_n(&ring->flags, 0, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	for (int look = 0; look < 8; look++) {
		if (has_work(ring, queue))
			return -EAGAIN;
		rte_pause();
	}
	return descriptor;
}

/* Asks the sender not to tell any more. What it told stays in its descriptor: who waits for that to be written to needs
 * no reading. */
void fb_memif_disarm(const struct fb_memif_queue *found)
{
	struct ring *ring = ring_of(found->device, found->queue);

	if (ring != NULL)
		__atomic_store_n(&ring->flags, FLAG_MASK_INTERRUPT, __ATOMIC_RELAXED);
}

#else

int fb_memif_find(uint16_t port, uint16_t number, const struct rte_mempool *pool, struct fb_memif_queue *out)
{
	(void)port, (void)number, (void)pool, (void)out;
	return -ENOTSUP;
}

int fb_memif_arm(const struct fb_memif_queue *found)
{
	(void)found;
	return -ENOTCONN;
}

void fb_memif_disarm(const struct fb_memif_queue *found) { (void)found; }

#endif
