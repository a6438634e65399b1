/* Forebay's C, but for memif_wake.c, port_events.c and vhost.c: burst-level functions over DPDK's static inlines, and the calls whose structures are
 * too wide to declare in Rust. Nothing here keeps state; every function is a few lines over one DPDK concept.
 * Results below zero are negated errno values. */

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <rte_cycles.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_version.h>

#include "layout_checks.h"

/* The facts about a port that Rust asks for; declared in lib.rs field by field. */
struct fb_port_info {
	char driver[32];
	uint64_t rx_offloads;
	uint64_t tx_offloads;
	uint64_t rss_flow_types;
	uint32_t if_index;
	uint32_t max_rx_frame_bytes;
	uint16_t max_rx_queues;
	uint16_t max_tx_queues;
	uint16_t min_mtu;
	uint16_t max_mtu;
};
_Static_assert(sizeof(struct fb_port_info) == 72, "fb_port_info and its Rust declaration differ");

struct fb_port_config {
	uint64_t rx_offloads;
	uint64_t tx_offloads;
	uint64_t rss_flow_types;
	uint16_t queues;
	uint16_t rx_descriptors;
	uint16_t tx_descriptors;
	uint16_t mtu;
	uint16_t rx_interrupts;
	uint8_t fill[6];
};
_Static_assert(sizeof(struct fb_port_config) == 40, "fb_port_config and its Rust declaration differ");

struct fb_port_stats {
	uint64_t rx_packets;
	uint64_t tx_packets;
	uint64_t rx_bytes;
	uint64_t tx_bytes;
	uint64_t rx_missed;
	uint64_t rx_errors;
	uint64_t tx_errors;
	uint64_t rx_no_memory;
};
_Static_assert(sizeof(struct fb_port_stats) == 64, "fb_port_stats and its Rust declaration differ");

/* --- EAL ------------------------------------------------------------------------------------------------------ */

/* DPDK's default log stream also writes to stdout and syslog; ours belongs on stderr alone. */
int fb_eal_init(int argc, char **argv)
{
	rte_openlog_stream(stderr);
	int used = rte_eal_init(argc, argv);
	return used < 0 ? -(rte_errno ? rte_errno : EINVAL) : 0;
}

int fb_eal_cleanup(void) { return rte_eal_cleanup(); }
int fb_eal_has_hugepages(void) { return rte_eal_has_hugepages(); }
uint64_t fb_tsc_hz(void) { return rte_get_tsc_hz(); }
uint64_t fb_tsc_now(void) { return rte_rdtsc(); }
const char *fb_runtime_dir(void) { return rte_eal_get_runtime_dir(); }
const char *fb_strerror(int error) { return rte_strerror(error); }

int fb_thread_register(void) { return rte_thread_register() < 0 ? -(rte_errno ? rte_errno : EINVAL) : 0; }
void fb_thread_unregister(void) { rte_thread_unregister(); }
/* The lcore id of the calling thread, or UINT32_MAX when it has none. */
uint32_t fb_lcore_id(void) { return rte_lcore_id(); }

/* --- packet memory -------------------------------------------------------------------------------------------- */

struct rte_mempool *fb_pool_create(const char *name, uint32_t packets, uint32_t cache, uint16_t buffer_bytes,
				   int *error)
{
	struct rte_mempool *pool =
		rte_pktmbuf_pool_create(name, packets, cache, 0, buffer_bytes, SOCKET_ID_ANY);
	*error = pool == NULL ? (rte_errno ? rte_errno : ENOMEM) : 0;
	return pool;
}

uint32_t fb_pool_in_use(const struct rte_mempool *pool) { return rte_mempool_in_use_count(pool); }
uint32_t fb_pool_available(const struct rte_mempool *pool) { return rte_mempool_avail_count(pool); }

struct rte_mbuf *fb_packet_alloc(struct rte_mempool *pool) { return rte_pktmbuf_alloc(pool); }
int fb_packet_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **packets, uint32_t count)
{
	return rte_pktmbuf_alloc_bulk(pool, packets, count);
}
void fb_packet_free(struct rte_mbuf *packet) { rte_pktmbuf_free(packet); }
void fb_packet_free_segment(struct rte_mbuf *segment) { rte_pktmbuf_free_seg(segment); }
void fb_packet_free_bulk(struct rte_mbuf **packets, uint32_t count) { rte_pktmbuf_free_bulk(packets, count); }

/* --- bursts --------------------------------------------------------------------------------------------------- */

uint16_t fb_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count)
{
	return rte_eth_rx_burst(port, queue, packets, count);
}

uint16_t fb_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t count)
{
	return rte_eth_tx_burst(port, queue, packets, count);
}

/* --- ports ---------------------------------------------------------------------------------------------------- */

uint16_t fb_port_limit(void) { return RTE_MAX_ETHPORTS; }
/* The tap driver sends the descriptors of all queues, both ways, in one message, and before DPDK 25 it overruns the
 * message's array when there are too many. 16 is its own limit in the versions that check. */
uint16_t fb_tap_queue_limit(void) { return RTE_MIN(RTE_MP_MAX_FD_NUM / 2, 16); }
uint16_t fb_port_count(void) { return rte_eth_dev_count_total(); }
int fb_port_is_valid(uint16_t port) { return rte_eth_dev_is_valid_port(port); }

int fb_device_probe(const char *devargs) { return rte_dev_probe(devargs); }

/* Removes the device of a port, by way of another of its handles: a closed port no longer knows it. */
void *fb_port_device(uint16_t port)
{
	struct rte_eth_dev_info info;
	return rte_eth_dev_info_get(port, &info) == 0 ? (void *)(uintptr_t)info.device : NULL;
}

int fb_device_remove(void *device) { return rte_dev_remove(device); }

/* The ports of a device, lowest first; returns how many were written. */
uint16_t fb_ports_of(const char *devargs, uint16_t *ports, uint16_t room)
{
	struct rte_dev_iterator iterator;
	uint16_t count = 0, port;

	RTE_ETH_FOREACH_MATCHING_DEV(port, devargs, &iterator)
	{
		if (count < room)
			ports[count++] = port;
	}
	if (count > 0 || room == 0)
		return count;

	char name[RTE_ETH_NAME_MAX_LEN];
	size_t length = strcspn(devargs, ",");
	if (length >= sizeof(name))
		return 0;
	memcpy(name, devargs, length);
	name[length] = '\0';
	return rte_eth_dev_get_port_by_name(name, ports) == 0 ? 1 : 0;
}

int fb_port_info(uint16_t port, struct fb_port_info *out)
{
	struct rte_eth_dev_info info;
	int result = rte_eth_dev_info_get(port, &info);
	if (result != 0)
		return result;
	memset(out, 0, sizeof(*out));
	snprintf(out->driver, sizeof(out->driver), "%s", info.driver_name ? info.driver_name : "unknown");
	out->rx_offloads = info.rx_offload_capa;
	out->tx_offloads = info.tx_offload_capa;
	out->rss_flow_types = info.flow_type_rss_offloads;
	out->if_index = info.if_index;
	out->max_rx_frame_bytes = info.max_rx_pktlen;
	out->max_rx_queues = info.max_rx_queues;
	out->max_tx_queues = info.max_tx_queues;
	out->min_mtu = info.min_mtu;
	out->max_mtu = info.max_mtu;
	return 0;
}

/* Configures a stopped port with as many receive as transmit queues, all fed from one pool. */
int fb_port_configure(uint16_t port, const struct fb_port_config *config, struct rte_mempool *pool)
{
	struct rte_eth_conf conf;
	uint16_t rx_descriptors = config->rx_descriptors, tx_descriptors = config->tx_descriptors;
	int result;

	memset(&conf, 0, sizeof(conf));
	conf.rxmode.mtu = config->mtu;
	conf.rxmode.offloads = config->rx_offloads;
	conf.txmode.offloads = config->tx_offloads;
	conf.intr_conf.rxq = config->rx_interrupts != 0;
	if (config->rss_flow_types != 0) {
		conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
		conf.rx_adv_conf.rss_conf.rss_hf = config->rss_flow_types;
	}
	result = rte_eth_dev_configure(port, config->queues, config->queues, &conf);
	if (result != 0)
		return result;
	result = rte_eth_dev_adjust_nb_rx_tx_desc(port, &rx_descriptors, &tx_descriptors);
	if (result != 0)
		return result;

	int socket = rte_eth_dev_socket_id(port);
	unsigned int node = socket < 0 ? (unsigned int)SOCKET_ID_ANY : (unsigned int)socket;
	for (uint16_t queue = 0; queue < config->queues; queue++) {
		result = rte_eth_rx_queue_setup(port, queue, rx_descriptors, node, NULL, pool);
		if (result != 0)
			return result;
		result = rte_eth_tx_queue_setup(port, queue, tx_descriptors, node, NULL);
		if (result != 0)
			return result;
	}
	return 0;
}

/* The descriptor that is readable while a receive queue holds packets, or below zero. */
int fb_rx_descriptor(uint16_t port, uint16_t queue) { return rte_eth_dev_rx_intr_ctl_q_get_fd(port, queue); }

/* What an af_packet queue of a started port names as its socket, or below zero. The driver offers no call for it; in
 * DPDK 22.11 it is the first field of the driver's queue. The caller checks that it is a socket of the interface. */
int fb_af_packet_descriptor(uint16_t port, uint16_t queue)
{
#if RTE_VERSION >= RTE_VERSION_NUM(22, 11, 0, 0) && RTE_VERSION < RTE_VERSION_NUM(22, 12, 0, 0)
	struct rte_eth_dev_info info;

	if (rte_eth_dev_info_get(port, &info) != 0 || info.driver_name == NULL ||
	    strcmp(info.driver_name, "net_af_packet") != 0 || queue >= info.nb_rx_queues ||
	    rte_eth_fp_ops[port].rxq.data[queue] == NULL)
		return -ENOTSUP;
	return *(const int *)rte_eth_fp_ops[port].rxq.data[queue];
#else
	(void)port, (void)queue;
	return -ENOTSUP;
#endif
}

int fb_port_start(uint16_t port) { return rte_eth_dev_start(port); }
int fb_port_stop(uint16_t port) { return rte_eth_dev_stop(port); }
int fb_port_close(uint16_t port) { return rte_eth_dev_close(port); }
int fb_port_set_mtu(uint16_t port, uint16_t mtu) { return rte_eth_dev_set_mtu(port, mtu); }
int fb_port_promiscuous(uint16_t port) { return rte_eth_promiscuous_enable(port); }
int fb_port_all_multicast(uint16_t port) { return rte_eth_allmulticast_enable(port); }

int fb_port_mac(uint16_t port, uint8_t mac[6])
{
	struct rte_ether_addr address;
	int result = rte_eth_macaddr_get(port, &address);
	if (result == 0)
		memcpy(mac, address.addr_bytes, 6);
	return result;
}

int fb_port_set_mac(uint16_t port, const uint8_t mac[6])
{
	struct rte_ether_addr address;
	memcpy(address.addr_bytes, mac, 6);
	return rte_eth_dev_default_mac_addr_set(port, &address);
}

/* 1: up, 0: down, below zero: unknown. */
int fb_port_link_up(uint16_t port)
{
	struct rte_eth_link link;
	memset(&link, 0, sizeof(link));
	int result = rte_eth_link_get_nowait(port, &link);
	return result < 0 ? result : link.link_status == RTE_ETH_LINK_UP;
}

int fb_port_stats(uint16_t port, struct fb_port_stats *out)
{
	struct rte_eth_stats stats;
	int result = rte_eth_stats_get(port, &stats);
	if (result != 0)
		return result;
	*out = (struct fb_port_stats){
		.rx_packets = stats.ipackets,
		.tx_packets = stats.opackets,
		.rx_bytes = stats.ibytes,
		.tx_bytes = stats.obytes,
		.rx_missed = stats.imissed,
		.rx_errors = stats.ierrors,
		.tx_errors = stats.oerrors,
		.rx_no_memory = stats.rx_nombuf,
	};
	return 0;
}
