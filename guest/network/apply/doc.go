// Package apply makes the kernel hold what package plan wrote down. It is the
// process's only user of netlink (routes) and of nftables.
//
// What happens once per machine goes through the libraries' own calls. What
// happens for each container is a hot path: a pair of links is one message,
// which puts the far end straight into the container's namespace, and the
// inside is set up by two sends on a socket that is opened there.
//
// An Executor belongs to the network namespace of the thread that opened it;
// its caller stays in that namespace.
package apply
