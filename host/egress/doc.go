// Package egress serves the guest's outbound streams: the agent asks for a
// connection to host:port over vsock, the host makes it with its own resolver,
// VPN routes and proxies, and copies bytes. "localhost" in a request is the
// host's. TLS stays end to end: the host sees only ciphertext.
//
// The daemon serves it on control.PortEgress for each boot. Only who holds the
// boot's key is served.
package egress
