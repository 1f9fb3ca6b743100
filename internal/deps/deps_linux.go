package deps

import (
	_ "github.com/google/nftables"
	_ "github.com/moby/profiles/seccomp"
	_ "github.com/vishvananda/netlink"
)
