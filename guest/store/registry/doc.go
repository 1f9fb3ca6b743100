// Package registry speaks the OCI distribution protocol as a client: it finds
// out how a registry wants to be spoken to, gets tokens, and reads manifests
// and blobs.
//
// It is written on net/http rather than on a registry library because of what
// docker's users rely on and the libraries do otherwise: plain HTTP for
// loopback registries only and after HTTPS was tried; token servers and blob
// stores at private addresses; credentials for the registry's own host alone,
// never for where it redirects; downloads that go on by Range after a break;
// and docker's own sentences when something fails (see Explain).
//
// Bytes go through Options.Dial, the host's egress. No call hangs: connecting,
// the TLS handshake, the response's header and each silence of a body have
// their time-outs, and attempts are bounded, so that a dead registry is an
// error within half a minute.
//
// The package knows nothing of stores: it checks no blob's digest (the content
// store does), only a manifest's.
package registry
