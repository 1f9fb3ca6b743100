// Package network joins containers with networks: the default bridge, none and
// host.
//
// The Manager decides (names, addresses, what is joined with what), package
// ipam holds the addresses, package plan writes down what the kernel should
// hold as plain data, and package apply, the only user of netlink and
// nftables, makes it so. The agent opens one Manager; the engine calls Attach
// once a container's network namespace exists and before its program runs, and
// Detach after it has ended. The Manager knows nothing of containers beyond an
// ID and a namespace.
//
// Nothing is made before it is needed: the bridge, its firewall table and the
// kernel modules behind them come with the first container on the bridge. What
// a former agent left behind is found again in the kernel, where each link
// carries its container's ID as its alias; there is no file to go stale.
package network
