// Package daemon is dhowd: the composition root of the host. It owns one
// machine, boots it when somebody needs it, and joins the parts: image, data
// disk, user-mode network, hypervisor driver, link to the agent, egress, docker
// socket, and dhowd's own HTTP API (host/client has its contract).
//
// cmd/dhowd calls Run. Read it top to bottom to see what dhowd is; boot.go lists
// the steps of a boot; state.go has the states.
//
// # Who owns what
//
// machine (machine.go) owns the state and is the only one that changes it; at
// most one start or stop is in progress, and whoever asks meanwhile joins it.
// life (boot.go) owns what one boot made; its goroutines end with it.
// A start or stop does not hang on the request that asked for it.
package daemon
