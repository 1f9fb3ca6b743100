// Package vhost is the back end of the vhost-user protocol: QEMU (the front
// end) keeps the PCI device and its configuration, and hands the guest's
// memory and the virtqueues to this process over a unix socket. A device
// (package vsockdev; later a file system) plugs in through the interface
// Device and sees nothing but Queues and the Chains in them.
//
// The parts, bottom up:
//
//   - message.go: the messages, as bytes. No I/O.
//   - memory.go: the guest's memory and the two address spaces that refer to
//     it (guest-physical in descriptors, QEMU's own for the rings).
//   - queue.go: one split virtqueue over that memory.
//   - serve_linux.go, session_linux.go: one connection of QEMU, from its first
//     message to its end.
//
// The guest is hostile: everything that it can write (descriptors, ring
// indexes, lengths) is read once and checked, and a violation stops the queue
// with one log line and nothing else. QEMU is trusted not to attack, and still
// checked, so that a mismatch of versions is an error and not a crash.
//
// The package uses Go's 32-bit atomics on the rings and assumes a
// little-endian machine, as virtio 1 does: amd64 and arm64.
//
// Sources: the vhost-user protocol (QEMU's docs/interop/vhost-user.rst) and
// virtio 1.1, section 2.6 (split virtqueues).
package vhost
