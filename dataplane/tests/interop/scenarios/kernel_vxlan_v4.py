"""A Forebay host and the kernel's own VXLAN device understand each other over an IPv4 underlay."""

from scenarios import _kernel_vxlan


def run(lab):
    """See _kernel_vxlan."""
    _kernel_vxlan.run(lab, 4)
