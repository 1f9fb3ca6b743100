package vhost

import "errors"

// Device is what stands behind the queues. Its methods are called by the
// session of one connection of QEMU:
//
//	Start(i) → Kick(i)… → Stop(i)
//
// for each queue i, from 0 to Queues()-1, any number of times (a reboot of the
// guest, a pause of the machine). Start and Stop come from one goroutine;
// Kick comes from a goroutine of the queue's own, between the two.
type Device interface {
	// Features returns the feature bits of the device itself. The
	// transport's are added; FeatureIndirect may be among the device's.
	Features() uint64
	// Queues returns how many queues QEMU hands over.
	Queues() int
	// Config returns the configuration space, nil if QEMU keeps it itself.
	Config() []byte
	// Start says that q, queue number i, has become live. It is the same
	// Queue at every start of one session. Kick follows at once.
	Start(i int, q *Queue)
	// Kick says that the guest made buffers available on queue i, or that
	// somebody called Poke. It may be called for nothing. It must take what
	// it can without waiting for the guest; it may hand chains to other
	// goroutines that Push them later.
	Kick(i int, q *Queue)
	// Stop says that queue i is no longer live: Pop finds nothing from here
	// on. Chains that were taken must still be pushed, and soon: the
	// session, and with it QEMU, waits for them. Afterwards the guest's
	// memory is no longer touched.
	Stop(i int, q *Queue)
}

// ErrUnsupported means that this system has no vhost-user: it needs memory and
// event file descriptors that only Linux has.
var ErrUnsupported = errors.New("vhost: vhost-user devices exist on Linux only")
