"""Two Forebay hosts over an IPv4 underlay carry two kernels' ping, TCP and UDP, without a loss."""

from scenarios import _two_hosts


def run(lab):
    """See _two_hosts."""
    _two_hosts.run(lab, 4)
