/* What DPDK's vhost driver does not do by itself: say which rings a guest has enabled, and offer guests no more than
 * this host does for them. */

#include <errno.h>
#include <stdint.h>

#include <rte_eth_vhost.h>
#include <rte_ethdev.h>
#include <rte_vhost.h>

/* Bits of virtio's features (OASIS virtio 1.2, sections 5.1.3, 5.1.3.2 and 6), which not every <linux/virtio_net.h> has. */
#define NET_F_GSO 6
#define NET_F_HOST_TSO4 11
#define NET_F_HOST_TSO6 12
#define NET_F_HOST_ECN 13
#define NET_F_HOST_UFO 14
#define RING_PACKED 34

/* Queue pairs of a port that are kept account of: the bits of a word. */
#define MOST_PAIRS 64

/* The rings of a port that its guest has enabled, a bit each. DPDK's vhost thread writes them, workers read them;
 * declared in lib.rs field by field. */
struct fb_vhost_rings {
	uint64_t from_guest;
	uint64_t to_guest;
	uint64_t beyond; /* not 0: the guest has enabled a ring that has no bit */
	uint64_t departures; /* how often a guest has gone */
};
_Static_assert(sizeof(struct fb_vhost_rings) == 32, "fb_vhost_rings and its Rust declaration differ");

static struct fb_vhost_rings rings[RTE_MAX_ETHPORTS];

int fb_vhost_attach(uint16_t port, const char *path);
void fb_vhost_forget(uint16_t port);
int fb_vhost_hurry(const char *path);
const struct fb_vhost_rings *fb_vhost_rings(uint16_t port);

static void forget(struct fb_vhost_rings *of)
{
	__atomic_store_n(&of->from_guest, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&of->to_guest, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&of->beyond, 0, __ATOMIC_RELAXED);
}

static void note(struct fb_vhost_rings *of, const struct rte_eth_vhost_queue_event *event)
{
	uint64_t *word = event->rx ? &of->from_guest : &of->to_guest;

	if (event->queue_id >= MOST_PAIRS)
		__atomic_store_n(&of->beyond, 1, __ATOMIC_RELAXED);
	else if (event->enable)
		__atomic_fetch_or(word, 1ULL << event->queue_id, __ATOMIC_RELAXED);
	else
		__atomic_fetch_and(word, ~(1ULL << event->queue_id), __ATOMIC_RELAXED);
}

/* Runs on the thread that speaks with the guest. */
static int rings_changed(uint16_t port, enum rte_eth_event_type type, void *context, void *result)
{
	struct rte_eth_vhost_queue_event event;
	struct rte_eth_link link;

	(void)context;
	(void)result;
	if (port >= RTE_MAX_ETHPORTS)
		return 0;
	/* A guest that leaves takes its rings with it, without an event for each. */
	if (type == RTE_ETH_EVENT_INTR_LSC && rte_eth_link_get_nowait(port, &link) == 0 &&
	    link.link_status == RTE_ETH_LINK_DOWN) {
		forget(&rings[port]);
		__atomic_fetch_add(&rings[port].departures, 1, __ATOMIC_RELAXED);
	}
	while (rte_eth_vhost_get_queue_event(port, &event) == 0)
		note(&rings[port], &event);
	return 0;
}

/* To be called for a configured port before a guest can reach `path`. From then on the rings are known, and guests are
 * offered neither segmentation, which nobody does for them, nor packed rings, whose place is lost where this side ends
 * without a word. */
int fb_vhost_attach(uint16_t port, const char *path)
{
	const uint64_t not_ours = 1ULL << NET_F_GSO | 1ULL << NET_F_HOST_TSO4 | 1ULL << NET_F_HOST_TSO6 |
				  1ULL << NET_F_HOST_ECN | 1ULL << NET_F_HOST_UFO | 1ULL << RING_PACKED;
	int result;

	if (port >= RTE_MAX_ETHPORTS)
		return -EINVAL;
	forget(&rings[port]);
	if (rte_vhost_driver_disable_features(path, not_ours) != 0)
		return -EIO;
	result = rte_eth_dev_callback_register(port, RTE_ETH_EVENT_QUEUE_STATE, rings_changed, NULL);
	if (result != 0)
		return result;
	return rte_eth_dev_callback_register(port, RTE_ETH_EVENT_INTR_LSC, rings_changed, NULL);
}

/* Makes DPDK's vhost thread look at the sockets that it was given. It waits for the old ones for up to a second after a
 * port has begun to listen, and is woken only by a connection: so one is made, with a socket that somebody else listens
 * at, and ended at once. */
int fb_vhost_hurry(const char *path)
{
	static const struct rte_vhost_device_ops nothing;
	int result = rte_vhost_driver_register(path, RTE_VHOST_USER_CLIENT | RTE_VHOST_USER_NO_RECONNECT);

	if (result != 0)
		return -EIO;
	if (rte_vhost_driver_callback_register(path, &nothing) == 0)
		result = rte_vhost_driver_start(path);
	rte_vhost_driver_unregister(path);
	return result == 0 ? 0 : -EIO;
}

/* To be called before the port is closed. */
void fb_vhost_forget(uint16_t port)
{
	rte_eth_dev_callback_unregister(port, RTE_ETH_EVENT_QUEUE_STATE, rings_changed, NULL);
	rte_eth_dev_callback_unregister(port, RTE_ETH_EVENT_INTR_LSC, rings_changed, NULL);
	if (port < RTE_MAX_ETHPORTS)
		forget(&rings[port]);
}

/* The rings of a port, valid for as long as the process runs; null for a port that no DPDK has. */
const struct fb_vhost_rings *fb_vhost_rings(uint16_t port) { return port < RTE_MAX_ETHPORTS ? &rings[port] : NULL; }
