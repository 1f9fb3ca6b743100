// Package gc decides what of the store may be removed.
//
// Everything that a durable record names is a root. What is in flight has no
// record yet: a pull, load or build takes a Lease first, and holds each blob
// and layer before it looks whether the store has it. A sweep removes nothing
// that is held, and nothing that was let go of while the sweep ran, for that
// may have got its record after the sweep read the roots.
//
// Leases live in memory only, on purpose: after a crash nothing is in flight,
// and the sweep at boot removes what was.
//
// The package knows names only; what they stand for is removed by functions of
// the store facade.
package gc
