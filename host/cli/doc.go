// Package cli is the dhow command: docker's own command set (the cobra
// commands of github.com/docker/cli) mounted on our root, and the machine
// commands, which are ours.
//
// It is called by cmd/dhow. It reaches the engine only through the docker
// socket and the machine only through host/client: it knows nothing of
// hypervisors. A docker command that needs the engine starts dhowd and the
// machine by itself, at its first connection; one that does not (help,
// context) never does.
package cli
