// Package splice joins two byte streams so that each sees the other's half-close
// and its end.
//
// The docker proxy and the egress use it. It knows nothing of what flows: a
// hijacked attach stream, a build context and a TLS session look the same.
package splice
