/* What drivers tell of a port by themselves: that its device was reset, or is being taken away.
 *
 * DPDK calls back on its interrupt thread. The callbacks note the event beside the port and do nothing else; whoever looks
 * after the port takes the note. An event that comes twice before that counts once. */

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include <rte_dev.h>
#include <rte_ethdev.h>

#define WAS_RESET 1u
#define GOES_AWAY 2u

int fb_port_watch(uint16_t port);
uint32_t fb_port_take_events(uint16_t port);

/* Written by DPDK's interrupt thread, emptied by the control side. */
static atomic_uint noted[RTE_MAX_ETHPORTS];

static void note(uint16_t port, unsigned int event)
{
	if (port < RTE_MAX_ETHPORTS)
		atomic_fetch_or(&noted[port], event);
}

static int on_port_event(uint16_t port, enum rte_eth_event_type type, void *argument, void *result)
{
	(void)argument;
	(void)result;
	note(port, type == RTE_ETH_EVENT_INTR_RESET ? WAS_RESET : GOES_AWAY);
	return 0;
}

/* vfio asks for a function back, for instance because it is removed; the kernel waits until it is closed. */
static void on_device_event(const char *name, enum rte_dev_event_type type, void *argument)
{
	(void)argument;
	uint16_t port;

	if (name == NULL || type != RTE_DEV_EVENT_REMOVE)
		return;
	RTE_ETH_FOREACH_DEV(port) {
		struct rte_eth_dev_info info;
		if (rte_eth_dev_info_get(port, &info) == 0 && info.device != NULL &&
		    strcmp(rte_dev_name(info.device), name) == 0)
			note(port, GOES_AWAY);
	}
}

/* Closing a port ends this. */
int fb_port_watch(uint16_t port)
{
	static atomic_flag watches_devices = ATOMIC_FLAG_INIT;

	if (!rte_eth_dev_is_valid_port(port))
		return -ENODEV;
	if (!atomic_flag_test_and_set(&watches_devices))
		(void)rte_dev_event_callback_register(NULL, on_device_event, NULL);
	atomic_store(&noted[port], 0);
	int result = rte_eth_dev_callback_register(port, RTE_ETH_EVENT_INTR_RESET, on_port_event, NULL);
	if (result != 0)
		return result;
	return rte_eth_dev_callback_register(port, RTE_ETH_EVENT_INTR_RMV, on_port_event, NULL);
}

/* The events since the last call: bit 0 for a reset, bit 1 for a device that goes away. */
uint32_t fb_port_take_events(uint16_t port)
{
	return port < RTE_MAX_ETHPORTS ? atomic_exchange(&noted[port], 0) : 0;
}
